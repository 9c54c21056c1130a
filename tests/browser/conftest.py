"""Debian's chromium, and the walk that every test takes twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest
from playwright.async_api import Browser, async_playwright, expect

from tests.browser.ui import SHOTS, Ui
from tests.lab import Lab

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Nothing that is seen here depends on what is reachable outside.
NO_INTERNET = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
LIMIT = 20_000

Walk = Callable[[Ui], Awaitable[None]]


class Both(Protocol):
    """Takes a walk twice."""

    async def __call__(self, walk: Walk, backends: int = 3) -> None:
        """Take it with one ComfyUI, then with a gateway."""


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    expect.set_options(timeout=LIMIT)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*ARGUMENTS, NO_INTERNET])
        yield browser
        await browser.close()


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where screenshots go: below $BROWSER_SHOTS, if that is set; else there is one of what failed."""
    folder = Path(SHOTS) / request.node.name if SHOTS else tmp_path / "shots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def walk_as_new_user(browser: Browser, walk: Walk, url: str, shots: Path, kind: str) -> set[str]:
    """Take a walk in a browser that has never been there; what went wrong on it."""
    context = await browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(LIMIT)
    ui = Ui(await context.new_page(), url, shots, kind)
    try:
        await walk(ui)
    except BaseException:
        await ui.shot("failed", anyway=True)
        raise
    finally:
        await context.close()
    return ui.troubles


@pytest.fixture
def both(lab: Lab, chromium: Browser, shots: Path) -> Both:
    """Take a walk with one ComfyUI, then with a gateway before several: nothing may go wrong that didn't before."""

    async def take(walk: Walk, backends: int = 3) -> None:
        alone = await lab.simulator()
        gateway = await lab.gateway(*await lab.simulators(backends))
        usual = await walk_as_new_user(chromium, walk, alone.url, shots, "alone")
        found = await walk_as_new_user(chromium, walk, gateway.url, shots, "gateway")
        assert sorted(found - usual) == []

    return take
