"""Results that nodes send over the WebSocket: none is dropped, whatever its size and however slowly it is read."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from gateway.simulator.nodes import bulk_picture
from tests.comfy_client import Comfy, Listener
from tests.lab import GatewayProcess, Lab, until

MB = 10**6
LEGACY_HEAD = b"\0\0\0\x01\0\0\0\x02"


def bulk(pictures: int = 0, picture_bytes: int = 0, text_bytes: int = 0, values: int = 0) -> dict[str, Any]:
    """A prompt whose node sends much."""
    inputs = {"pictures": pictures, "picture_bytes": picture_bytes, "text_bytes": text_bytes, "values": values}
    return {"1": {"class_type": "BulkNode", "inputs": inputs}}


def websocket(width: int = 64, batch: int = 2, seed: int = 1) -> dict[str, Any]:
    """A prompt that sends pictures over the socket, after a sampler that shows previews."""
    sampler = {"steps": 3, "step_seconds": 0.01, "seed": seed, "width": width, "height": width}
    empty = {"width": width, "height": 48, "batch_size": batch, "color": seed}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "SlowSampler", "inputs": sampler},
        "4": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["3", 0]}},
    }


def pictures(listener: Listener) -> list[bytes]:
    """The pictures of the size of results that were heard, without their heads."""
    found = [event["raw"] for event in listener.heard if event["type"].startswith("binary")]
    return [raw[raw.index(b"\x89PNG") :] for raw in found if b"\x89PNG" in raw[:400]]


async def hear(listener: Listener, prompt_id: str) -> None:
    """Listen to the end of a prompt, however long that takes."""
    async with asyncio.timeout(60):
        await listener.end_of(prompt_id)


async def metric(lab: Lab, gateway: GatewayProcess, name: str) -> float:
    """A metric's value, of all labels together."""
    text = await (await lab.http.get(f"{gateway.url}/metrics")).text()
    lines = [line for line in text.splitlines() if line.startswith(f"comfyui_gateway_{name}")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("flags", [None, {"supports_preview_metadata": True}])
async def test_a_large_picture_arrives_whole(lab: Lab, flags: dict[str, Any] | None) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", flags=flags)
    prompt_id = await comfy.prompt(bulk(1, 40 * MB), "c")
    await hear(listener, prompt_id)
    (picture,) = pictures(listener)
    assert picture == bulk_picture(0, 40 * MB)
    (raw,) = [event["raw"] for event in listener.heard if event["type"].startswith("binary")]
    if flags is None:
        assert raw.startswith(LEGACY_HEAD + b"\x89PNG")
    else:
        head = raw[: raw.index(b"\x89PNG")]
        assert prompt_id.encode() in head
        assert gateway.upstream_ids()[prompt_id].encode() not in head
