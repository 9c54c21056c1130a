"""Metrics of a gateway, read and waited for."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.lab import GatewayProcess, Lab


async def metric(lab: Lab, gateway: GatewayProcess, line: str) -> float:
    """A metric's value; 0 if it is not there yet."""
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    found = [found for found in text.splitlines() if found.startswith(f"comfyui_gateway_{line} ")]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the gateway closes."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(2**16):
            heard += piece
    return heard
