"""What a backend's /object_info costs: large ones that change all the time, and one that is too large."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.attacks import Attack, Case
from benchmarks.bare import object_info

SECONDS = 40.0
_FILES = [f"folder {n % 9}/a file of somebody {n:06}.png" for n in range(40_000)]


def catalogue(megabytes: int, version: int) -> bytes:
    """Return a catalogue of custom nodes, one of them with a long list; in each version each class is another."""
    choices = [f"sub{n % 7}/a_model_{n:04}.safetensors" for n in range(50)]
    inputs: dict[str, Any] = {
        "image": ["IMAGE", {"tooltip": f"a sentence of version {version}"}],
        "seed": ["INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}],
        "strength": ["FLOAT", {"default": 1.0, "min": -10.5, "max": 10.5, "step": 0.01}],
        "model": [choices, {"tooltip": "the model"}],
        "text": ["STRING", {"multiline": True, "default": ""}],
    }
    description = {
        "input": {"required": inputs, "optional": {"mask": ["MASK"]}, "hidden": {"prompt": "PROMPT"}},
        "output": ["IMAGE", "MASK"],
        "output_is_list": [False, False],
        "description": "A node. " * 8,
        "output_node": False,
    }
    text = json.dumps(description)[:-1]
    count = megabytes * 1_000_000 // len(text)
    told = [f'"Custom{n}": {text}, "python_module": "custom_nodes.pack{n % 60}"}}' for n in range(count)]
    long = {
        **description,
        "input": {"required": {"image": [[*_FILES, f"{version}.png"], {"image_upload": True}]}},
    }
    stock = json.dumps(object_info())[1:-1]
    return f'{{{stock}, "Long": {json.dumps(long)}, {", ".join(told)}}}'.encode()


async def _ask(attack: Attack, key: str) -> str:
    headers = {"X-API-Key": attack.keys[key]}
    async with attack.http.get(f"{attack.url}/object_info", headers=headers) as answer:
        await answer.read()
        return answer.headers.get("ETag", "")


async def refreshes(attack: Attack) -> int:
    """Wait until the catalogue has changed twice, while somebody asks for it."""
    known, changes = await _ask(attack, "anna"), 0
    try:
        async with asyncio.timeout(SECONDS):
            while changes < 2:
                await asyncio.sleep(0.5)
                newest = await _ask(attack, "anna")
                known, changes = newest, changes + (newest != known)
    except TimeoutError:
        pass
    return changes


async def waits(_: Attack) -> int:
    """Wait for some refreshes."""
    await asyncio.sleep(5)
    return 1


async def restricted(attack: Attack) -> int:
    """Ask as a tenant that may not use all."""
    return len(await asyncio.gather(*(_ask(attack, "carl") for _ in range(5))))


def _case(name: str, attack: Callable[[Attack], Awaitable[int]], kind: str, **how: Any) -> Case:
    settings = {"CATALOGUE__REFRESH": "2"}
    return Case(name, attack, backend=("-m", "benchmarks.hostile", kind), settings=settings, counts_threads=True, **how)


CASES = (
    _case("a backend's /object_info of 30 MB, changed", refreshes, "catalogue-30"),
    _case("five backends' /object_info of 30 MB, changed", refreshes, "catalogue-30", backends=5),
    _case("a backend's /object_info of 100 MB, changed", refreshes, "catalogue-100"),
    _case("a backend's /object_info of 140 MB, which is too much", waits, "catalogue-140"),
    _case("a restricted tenant's first GET /object_info of 30 MB", restricted, "catalogue-30-once"),
)
