"""This checkout's gateway against that of another one: POST /prompt, and all that a job costs from POST to its entry.

Run with ``BEFORE=DIR``, a checkout of the commit to compare with. Without it there are no rows.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from benchmarks import servers
from benchmarks.prompts import posted, send, wait_until_up
from benchmarks.table import Row, in_turns, ratio
from tests.support.lab import until
from tests.support.workflows import text_to_image

_KEYS = {name: f"a-key-of-the-benchmark-{name}" for name in ("anna", "ben")}
_CURRENT = Path.cwd()


def large() -> dict[str, Any]:
    """A prompt of about 50 nodes and 10 KB: eight samplers in a row, each with texts of its own."""
    prompt = text_to_image(steps=1)
    for n in range(8):
        own = {key: str(int(key) + 10 * (n + 1)) for key in ("2", "3", "4", "5", "6", "7")}
        for key, new in own.items():
            node = json.loads(json.dumps(prompt[key]))
            node["inputs"] = {
                name: [own.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            }
            prompt[new] = node
        prompt[own["2"]]["inputs"]["text"] = f"picture {n} of an astronaut on a horse, " * 18
    return prompt


def passes() -> dict[str, Any]:
    """A prompt of 49 nodes and 10 KB: fifteen samplers, each refining the latent of the one before, and one saver."""
    prompt = text_to_image(steps=1)
    last = "6"
    for n in range(1, 15):
        for key in ("2", "3", "6"):
            prompt[f"{n}{key}"] = json.loads(json.dumps(prompt[key]))
        prompt[f"{n}2"]["inputs"]["text"] = f"picture {n} of an astronaut on a horse, " * 9
        links = {"positive": [f"{n}2", 0], "negative": [f"{n}3", 0], "latent_image": [last, 0]}
        prompt[f"{n}6"]["inputs"] |= links
        last = f"{n}6"
    prompt["5"]["inputs"]["samples"] = [last, 0]
    return prompt


_PROMPTS = {
    "1 KB, 7 nodes": text_to_image(steps=1),
    "10 KB, 49 nodes, 1 saver": passes(),
    "10 KB, 55 nodes, 9 savers": large(),
}


def _before() -> Path | None:
    return Path(os.environ["BEFORE"]).resolve() if os.environ.get("BEFORE") else None


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows against another checkout."""
    before = _before()
    rows: list[Row] = []
    for what, prompt in _PROMPTS.items() if before is not None else ():
        for who in ("one tenant", "two isolated tenants"):
            is_shared = who != "one tenant"
            assert before is not None
            rows.append(await _post(before, f"POST /prompt, {what}, {who}", prompt, is_shared, rounds, seconds))
            rows.append(await _job(before, f"a job's CPU time, {what}, {who}", prompt, is_shared, rounds))
    return rows


@asynccontextmanager
async def _gateway(checkout: Path, backend: str, is_shared: bool) -> AsyncIterator[servers.Running]:
    with tempfile.TemporaryDirectory(prefix="bench-before-") as directory:
        config = None
        if is_shared:
            config = Path(directory) / "gateway.yaml"
            keys = [{"name": name, "key": key} for name, key in _KEYS.items()]
            config.write_text(yaml.safe_dump({"auth": {"keys": keys}}))
        async with servers.gateway(backend, config=config, checkout=checkout) as gateway:
            async with aiohttp.ClientSession() as http:
                await wait_until_up(http, gateway.url)
            yield gateway


async def _post(before: Path, what: str, prompt: dict[str, Any], is_shared: bool, rounds: int, seconds: float) -> Row:
    """Prompts accepted in a second, by a backend that never runs them."""
    body = json.dumps({"prompt": prompt, "client_id": "bench"})

    async def rate(checkout: Path) -> float:
        async with _gateway(checkout, backend.url, is_shared) as gateway:
            return await posted(gateway.url, seconds, body, _KEYS["ben"])

    async with servers.python("-m", "benchmarks.bare", "backend", core=servers.LOAD_CORE) as backend:
        now, then, ratios = await in_turns(rounds, lambda: rate(_CURRENT), lambda: rate(before))
    return Row(what, f"{now:,.0f}/s", f"before {then:,.0f}/s", ratio(ratios), "0.95")


async def _job(before: Path, what: str, prompt: dict[str, Any], is_shared: bool, rounds: int) -> Row:
    """CPU time of the gateway for each job, from POST /prompt until its history entry is there."""
    jobs = 50 if rounds == 1 else 300
    body = json.dumps({"prompt": prompt, "client_id": "bench"}).encode()
    options = ("--port", "0", "--steps-per-second", "100000")

    async def milliseconds(checkout: Path) -> float:
        async with (
            servers.python("-m", "gateway.simulator", *options, core=servers.LOAD_CORE) as simulator,
            _gateway(checkout, simulator.url, is_shared) as gateway,
            aiohttp.ClientSession(headers={"X-API-Key": _KEYS["ben"]}) as http,
        ):
            process = psutil.Process(gateway.process.pid)
            await _all_end(http, gateway.url, body, 20)
            began = sum(process.cpu_times()[:2])
            await _all_end(http, gateway.url, body, jobs)
            return (sum(process.cpu_times()[:2]) - began) / jobs * 1000

    now, then, ratios = await in_turns(rounds, lambda: milliseconds(_CURRENT), lambda: milliseconds(before))
    return Row(what, f"{now:.2f} ms", f"before {then:.2f} ms", ratio(ratios), "1.05")


async def _all_end(http: aiohttp.ClientSession, url: str, body: bytes, count: int) -> None:
    await send(http, url, body, count, at_once=8)

    async def is_empty() -> bool:
        async with http.get(f"{url}/prompt") as answer:
            return (await answer.json())["exec_info"]["queue_remaining"] == 0

    await until(is_empty, 120)
