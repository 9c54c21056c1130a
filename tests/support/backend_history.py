"""History of a backend, asked directly."""

from __future__ import annotations

from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator


async def history_there(lab: Lab, simulator: Simulator) -> dict[str, Any]:
    """What a backend has run, by its own account."""
    found: dict[str, Any] = await Comfy(lab.http, simulator.url).get("/history")
    return found
