"""State of backends, as the admin API and the simulators tell it."""

from __future__ import annotations

from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator


async def described(comfy: Comfy, name: str) -> dict[str, Any]:
    """What the gateway knows of a backend."""
    found: dict[str, Any] = next(b for b in (await comfy.get("/gateway/backends"))["backends"] if b["name"] == name)
    return found


async def posts(lab: Lab, *simulators: Simulator) -> list[int]:
    """How many prompts each was sent."""
    return [(await simulator.requests(lab.http)).get("POST /prompt", 0) for simulator in simulators]
