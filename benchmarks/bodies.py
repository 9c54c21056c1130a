"""What a tenant with a key may send as bodies: the worst that the bounds of prompts and orders allow."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from io import BytesIO
from typing import Any

from benchmarks.attacks import Attack, Case

MIB = 2**20
# A body takes this much less than `dispatch.max_prompt_bytes` has: room for what is around its noise.
LONG = 12 * MIB - 4_096
NODES, OUTPUTS = 1_990, 490
TRIES, PAUSE_SECONDS = 200, 0.05

Graph = dict[str, Any]
START = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}


def save(image: Any, prefix: Any = "x") -> Graph:
    """A node that saves."""
    return {"class_type": "SaveImage", "inputs": {"images": image, "filename_prefix": prefix}}


def invert(image: Any, **more: Any) -> Graph:
    """A node that hands on a picture."""
    return {"class_type": "ImageInvert", "inputs": {"image": image, **more}}


def small(**more: Graph) -> Graph:
    """A graph that runs, with more nodes beside it."""
    return {"0": START, "1": save(["0", 0]), **more}


def noise(size: int) -> str:
    """Text that does not compress well."""
    return random.Random(0).randbytes(size // 2).hex()


def body(prompt: Any, **more: Any) -> bytes:
    """A body as short as it can be."""
    return json.dumps({"prompt": prompt, **more}, separators=(",", ":"), ensure_ascii=False).encode()


def text(value: str) -> bytes:
    """A prompt with a long text."""
    return body(small(t={"class_type": "PrimitiveString", "inputs": {"value": value}}))


def extra(value: Any) -> bytes:
    """A prompt with something large beside its graph."""
    return body(small(), extra_data={"extra_pnginfo": {"workflow": value}})


def chain(count: int, links: int) -> Graph:
    """Lists of lists: each node has links to those before it."""
    nodes = {
        str(n): {
            "class_type": "CreateList",
            "inputs": {f"inputs.input{k}": [str(max(n - k - 1, 0)), 0] for k in range(links)},
        }
        for n in range(1, count)
    }
    return {"0": START, **nodes, "e": save([str(count - 1), 0])}


def failing() -> Graph:
    """A chain whose first node lacks its inputs, and outputs that all fail for it."""
    nodes = {str(n): invert([str(n - 1), 0]) for n in range(1, NODES - OUTPUTS)}
    outputs = {f"s{n}": save([str(NODES - OUTPUTS - 1), 0]) for n in range(OUTPUTS)}
    return {"0": {"class_type": "EmptyImage", "inputs": {}}, **nodes, **outputs}


BODIES: dict[str, Callable[[], bytes]] = {
    "a text of 12 MiB": lambda: text(noise(LONG)),
    "a text of 12 MiB of escapes": lambda: text('"\n' * (LONG // 4)),
    "a text of 4 MiB with an emoji": lambda: text("\U0001f600" + noise(LONG // 2)),
    "a text of 12 MiB and NaN": lambda: body(small(), x=[float("nan"), noise(LONG)]),
    "1 MiB of emojis and NaN": lambda: body(small(), x=[float("nan"), "\U0001f600" * (MIB // 4 - 100)]),
    "12 MiB of noise in extra_pnginfo": lambda: extra(noise(LONG)),
    "49,000 objects in extra_pnginfo": lambda: extra([{"a": {}}] * 49_000),
    "49,000 arrays of texts in extra_pnginfo": lambda: extra([[["x" * 150]]] * 49_000),
    "990,000 empty texts 190 deep": lambda: (
        b'{"prompt":{"1":{"class_type":"X","inputs":{"a":'
        + b"[" * 190
        + b'"",' * 990_000
        + b'""'
        + b"]" * 190
        + b"}}}}"
    ),
    "10,000 empty arrays in 32 KB": lambda: (
        b'{"prompt":{"1":{"class_type":"X","inputs":{"a":[' + b"[]," * 10_700 + b"[]]}}}}"
    ),
    "a chain of lists, 9 links each": lambda: body(chain(1_300, 9)),
    "savers behind a chain": lambda: body(
        {
            "0": START,
            **{str(n): invert([str(n - 1), 0]) for n in range(1, NODES - OUTPUTS)},
            **{f"s{n}": save([str(NODES - OUTPUTS - 1), 0], f"x{n}") for n in range(OUTPUTS)},
        }
    ),
    "15 unknown inputs a node": lambda: body(
        small(**{f"n{n}": invert(["0", 0], **{f"a{k}": "text" for k in range(15)}) for n in range(1_900)})
    ),
    "files in one node": lambda: body(small(f=invert(["0", 0], **{f"f{n}": f"{n}.png" for n in range(1_900)}))),
    "a chain that fails at 490 outputs": lambda: body(failing()),
    "a cycle of 1,990 nodes": lambda: body(
        {**{str(n): invert([str((n + 1) % NODES), 0]) for n in range(NODES)}, "s": save(["0", 0])}
    ),
    "formulas": lambda: body(
        small(
            **{
                f"f{n}": {"class_type": "ComfyMathExpression", "inputs": {"expression": "1+1", "values.a": 1}}
                for n in range(1_600)
            }
        )
    ),
    "1,900 outputs": lambda: body({"0": START, **{f"s{n}": save(["0", 0]) for n in range(1_900)}}),
    "200,000 targets": lambda: body(small(), partial_execution_targets=["1"] * 200_000),
    "a file's name of 6 MiB": lambda: body(
        small(f={"class_type": "LoadImage", "inputs": {"image": "a/" * (3 * MIB) + "x.png"}})
    ),
    "a model's name of 6 MiB": lambda: body(
        small(f={"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a/" * (3 * MIB) + "x.safetensors"}})
    ),
    "a class of 12 MiB": lambda: body(small(f={"class_type": "x" * LONG})),
    "a workflow's id of 12 MiB": lambda: extra({"id": "x" * LONG}),
}


def prompt_case(name: str, make: Callable[[], bytes]) -> Case:
    """A case that sends a prompt twice, and reads all that is told of it."""

    async def attack(attack: Attack) -> int:
        headers, sent, count = {"X-API-Key": attack.keys["anna"]}, make(), 0

        async def get(path: str) -> bytes:
            nonlocal count
            count += 1
            async with attack.http.get(attack.url + path, headers=headers) as answer:
                return await answer.read()

        for _ in range(2):
            count += 1
            posted = attack.http.post(attack.url + "/prompt", data=BytesIO(sent), headers=headers)
            async with posted as answer:
                told = await answer.json() if answer.status == 200 else {}
            if not told:
                continue
            for path in ("/queue", "/api/jobs"):
                await get(path)
            for _ in range(TRIES):
                if await get(f"/history/{told['prompt_id']}") != b"{}":
                    break
                await asyncio.sleep(PAUSE_SECONDS)
            for path in ("/history", f"/api/jobs/{told['prompt_id']}"):
                await get(path)
        return count

    return Case(f"a prompt, {name}", attack)


def order_case(path: str, key: str) -> Case:
    """A case that names as many jobs as one order may."""

    async def attack(attack: Attack) -> int:
        headers = {"X-API-Key": attack.keys["anna"]}
        for count in (11_990, 1_000_000):
            ids = [f"11111111-2222-4333-8444-{n:012}" for n in range(count)]
            sent = BytesIO(json.dumps({key: ids}).encode())
            try:
                async with attack.http.post(attack.url + path, data=sent, headers=headers) as answer:
                    await answer.read()
            except OSError:
                # Refused while it was being sent.
                continue
        return 2

    return Case(f"an order, {path}", attack)


PROMPTS = tuple(prompt_case(name, make) for name, make in BODIES.items())
ORDERS = tuple(
    order_case(path, key)
    for path, key in (
        ("/queue", "delete"),
        ("/history", "delete"),
        ("/api/jobs/cancel", "job_ids"),
        ("/interrupt", "x"),
    )
)
CASES = (*PROMPTS, *ORDERS)
