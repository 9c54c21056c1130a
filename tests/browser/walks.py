"""Walks through the web UI, alone and behind the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from playwright.async_api import Browser

from tests.browser.ui import Held, Ui

LIMIT = 20_000
Walk = Callable[[Ui], Awaitable[None]]


class Both(Protocol):
    """Takes a walk twice."""

    async def __call__(self, walk: Walk, backends: int = 3) -> None:
        """Take it with one ComfyUI, then with a gateway."""


async def walk_as_new_user(
    browser: Browser, walk: Walk, url: str, shots: Path, kind: str, held: Held = nullcontext
) -> set[str]:
    """Take a walk in a browser that has never been there; what went wrong on it."""
    context = await browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(LIMIT)
    ui = Ui(await context.new_page(), url, shots, kind, held)
    try:
        await walk(ui)
    except BaseException:
        await ui.shot("failed", anyway=True)
        raise
    finally:
        await context.close()
    return ui.troubles
