"""What a backend may say of a prompt at its worst: each case has a backend that says it, and a prompt sent there."""

from __future__ import annotations

import asyncio

from benchmarks.attacks import Attack, Case
from benchmarks.sockets import prompt

# After so long without its end a prompt is left alone: the gateway may be asking again.
PATIENCE_SECONDS = 30.0
KINDS = {
    "entry": "a history entry of 400 MB",
    "values": "a result of 41,000 empty lists",
    "files": "a result of 8,000 files",
    "names": "a result of 41,000 names of 3D models",
    "nan": "a result of 6 MiB with NaN",
    "text": "a result of 6 MiB that looks like secret folders",
    "folder": "a result of 6 MiB with a secret folder",
    "error": "an error of 6 MiB that names paths",
    "events": "20 executed events of 41,000 values",
    "types": "100,000 events of types that it makes up",
    "frame": "a text message of 60 MiB",
    "packed": "a /queue of 927 KB that unpacks to 900 MB",
}


async def ends(attack: Attack) -> int:
    """Send prompts and wait until each has ended."""
    headers = {"X-API-Key": attack.keys["anna"]}
    for seed in range(2):
        async with attack.http.post(f"{attack.url}/prompt", json={"prompt": prompt(seed)}, headers=headers) as answer:
            prompt_id = (await answer.json()).get("prompt_id")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while prompt_id is not None:
                    async with attack.http.get(f"{attack.url}/history/{prompt_id}", headers=headers) as answer:
                        if await answer.read() != b"{}":
                            break
                    await asyncio.sleep(0.1)
        except TimeoutError:
            continue
    return 2


CASES = tuple(
    Case(f"a backend with {what}", ends, backend=("-m", "benchmarks.hostile", kind)) for kind, what in KINDS.items()
)
