"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.lab import Lab


def pytest_addoption(parser: pytest.Parser) -> None:
    """The conformance suite can be pointed at a real ComfyUI."""
    parser.addoption("--comfyui", metavar="URL", default=None, help="run tests/conformance against this ComfyUI")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Processes for one test."""
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        await lab.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session
