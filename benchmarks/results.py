"""What large results cost: pictures over the socket and `executed` events, read at once and late, and their history."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from benchmarks.attacks import Attack, Case

# A message of a backend may have 64 MiB.
LARGEST = 60_000_000
SESSION = "results"


def prompt(**inputs: int) -> dict[str, Any]:
    """A prompt whose node sends much."""
    sent = {"pictures": 0, "picture_bytes": LARGEST, "text_bytes": 0, "values": 0, **inputs}
    return {"1": {"class_type": "BulkNode", "inputs": sent}}


async def _run(attack: Attack, graph: dict[str, Any], *, late: bool) -> str:
    """Run a prompt and read what its session hears, `late` only once it is over. Return its id."""
    headers = {"X-API-Key": attack.keys["anna"]}
    url = f"{attack.url}/ws?clientId={SESSION}"
    async with attack.http.ws_connect(url, headers=headers, max_msg_size=0) as socket:
        body = {"prompt": graph, "client_id": SESSION}
        async with attack.http.post(f"{attack.url}/prompt", json=body, headers=headers) as answer:
            prompt_id = str((await answer.json())["prompt_id"])
        end = {"type": "executing", "data": {"node": None, "prompt_id": prompt_id}}
        while late:
            async with attack.http.get(f"{attack.url}/history/{prompt_id}", headers=headers) as answer:
                late = await answer.read() == b"{}"
            await asyncio.sleep(0.1)
        async with asyncio.timeout(60):
            async for message in socket:
                is_short = message.type is aiohttp.WSMsgType.TEXT and len(message.data) < 1000
                if is_short and json.loads(message.data) == end:
                    break
    return prompt_id


async def picture(attack: Attack) -> int:
    """Read a picture as it comes."""
    await _run(attack, prompt(pictures=1), late=False)
    return 1


async def late_pictures(attack: Attack) -> int:
    """Read four once they are on disk."""
    await _run(attack, prompt(pictures=4), late=True)
    return 4


async def executed(attack: Attack) -> int:
    """Read an event, and what is kept of it."""
    prompt_id = await _run(attack, prompt(text_bytes=LARGEST), late=False)
    for path in (f"/history/{prompt_id}", "/history", "/api/jobs"):
        async with attack.http.get(attack.url + path, headers={"X-API-Key": attack.keys["anna"]}) as answer:
            await answer.read()
    return 1


async def shown(attack: Attack) -> int:
    """Have /api/jobs/{id} made of a large entry."""
    prompt_id = await _run(attack, prompt(text_bytes=LARGEST), late=False)
    path = f"/api/jobs/{prompt_id}"
    async with attack.http.get(attack.url + path, headers={"X-API-Key": attack.keys["anna"]}) as answer:
        await answer.read()
    return 1


CASES = (
    Case("a picture of 60 MB over the socket", picture),
    Case("four pictures of 60 MB that are read late", late_pictures),
    Case("an executed event of 60 MB, and its history", executed),
    Case("/api/jobs of a result of 60 MB", shown),
)
