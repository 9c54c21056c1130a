"""Debian's chromium, and the walk that every test takes twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.browser.ui import SHOTS
from tests.browser.walks import LIMIT, Both, Walk, walk_as_new_user
from tests.support.chromium import launched
from tests.support.lab import Lab


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    expect.set_options(timeout=LIMIT)
    async with launched() as browser:
        yield browser


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where screenshots go: below $BROWSER_SHOTS, if that is set; else there is one of what failed."""
    folder = Path(SHOTS) / request.node.name if SHOTS else tmp_path / "shots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def both(lab: Lab, chromium: Browser, shots: Path) -> Both:
    """Take a walk with one ComfyUI, then with a gateway before several: nothing may go wrong that didn't before."""

    async def take(walk: Walk, backends: int = 3) -> None:
        alone = await lab.simulator()
        simulators = await lab.simulators(backends)
        gateway = await lab.gateway(*simulators)
        usual = await walk_as_new_user(chromium, walk, alone.url, shots, "alone", lambda: lab.held(alone))
        found = await walk_as_new_user(chromium, walk, gateway.url, shots, "gateway", lambda: lab.held(*simulators))
        assert sorted(found - usual) == []

    return take
