"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from tests.support.lab import Lab, Server
from tests.support.zygote import Zygote

# The same examples in every run, and no clock in the verdict; `--hypothesis-profile default` searches anew.
settings.register_profile(
    "suite", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The conformance suite can be pointed at a real ComfyUI."""
    parser.addoption("--comfyui", metavar="URL", default=None, help="run tests/conformance against this ComfyUI")


@pytest.fixture(scope="session", autouse=True)
def zygote() -> Iterator[None]:
    """What a lab starts is forked."""
    Server.zygote = Zygote()
    yield
    Server.zygote.close()
    Server.zygote = None


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Processes for one test."""
    lab = Lab(tmp_path)
    try:
        yield lab
    finally:
        await lab.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """Processes for those tests of a module that run in the module's loop, and do not disturb each other."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        yield lab
    finally:
        await lab.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session
