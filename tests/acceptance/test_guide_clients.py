"""The production guide's two clients, as a user would write them, over three backends."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import httpx
import websocket

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.pictures import colour
from tests.support.workflows import text_to_image


def queue_and_poll(url: str, workflow: dict[str, Any]) -> list[bytes]:
    """Pattern 1 of the guide: POST /prompt, then GET /history until it is there, then GET /view."""
    response = httpx.post(f"{url}/prompt", json={"prompt": workflow, "client_id": str(uuid.uuid4())})
    response.raise_for_status()
    data = response.json()
    assert not data["node_errors"]
    prompt_id = data["prompt_id"]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        history = httpx.get(f"{url}/history/{prompt_id}").json()
        if prompt_id in history:
            images = [i for node in history[prompt_id]["outputs"].values() for i in node.get("images", [])]
            return [httpx.get(f"{url}/view", params=image).raise_for_status().content for image in images]
        time.sleep(0.1)
    raise AssertionError("no history entry")


def run_with_progress(url: str, workflow: dict[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """Pattern 2 of the guide: listen first, then post; ends at ``executing`` with node null."""
    client_id = str(uuid.uuid4())
    socket = websocket.WebSocket()
    socket.connect(f"{url.replace('http', 'ws')}/ws?clientId={client_id}", timeout=30)
    response = httpx.post(f"{url}/prompt", json={"prompt": workflow, "client_id": client_id})
    prompt_id = response.raise_for_status().json()["prompt_id"]
    images: list[dict[str, str]] = []
    seen: list[str] = []
    while True:
        raw = socket.recv()
        if isinstance(raw, bytes):
            seen.append("preview")
            continue
        message = json.loads(raw)
        data = message.get("data", {})
        seen.append(message["type"])
        if message["type"] == "executing" and data["prompt_id"] == prompt_id and data["node"] is None:
            break
        if message["type"] == "executed" and data["prompt_id"] == prompt_id:
            images += data["output"].get("images", [])
    socket.close()
    return images, seen


async def test_queue_and_poll(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(3))
    seeds = [1000 * n + 7 for n in range(6)]
    results = await asyncio.gather(
        *(asyncio.to_thread(queue_and_poll, gateway.url, text_to_image(seed)) for seed in seeds)
    )
    assert [[colour(data) for data in images] for images in results] == [[seed_colour(seed)] for seed in seeds]


async def test_websocket(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(3))
    seeds = [1000 * n + 9 for n in range(4)]
    results = await asyncio.gather(
        *(asyncio.to_thread(run_with_progress, gateway.url, text_to_image(seed)) for seed in seeds)
    )
    for seed, (images, seen) in zip(seeds, results, strict=True):
        assert {"status", "execution_start", "progress", "preview", "executed", "execution_success"} <= set(seen)
        data = await Comfy(lab.http, gateway.url).view(images[0])
        assert colour(data) == seed_colour(seed)
    names = [image["filename"] for images, _ in results for image in images]
    assert len(set(names)) == len(names)
