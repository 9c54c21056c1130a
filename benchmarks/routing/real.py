"""The real gateway before simulated backends on the traces, time run fast; and nginx before the same.

A job's end is what its backend says (`execution_success` in its history entry), and so is a load: a run whose loader is
not in `execution_cached`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks import servers
from benchmarks.routing.figures import Figures, jain
from benchmarks.routing.simulation import Run
from benchmarks.routing.sketches import end_bound
from benchmarks.routing.traces import Arrival, Fleet
from tests.support.lab import until
from tests.support.workflows import text_to_image

# Simulated seconds for each real one.
RATE = 60.0
# `nginx` in place of a policy: round robin without a gateway.
NGINX = "nginx"
# A ComfyUI without cache options keeps the last prompt's models; with these it keeps all that fit.
KEEP_ALL = ("--cache-ram", "4", "8")


@dataclass(slots=True)
class Ended:
    """Run as its backend told it: times of the backend's clock, in seconds, and if it loaded its model."""

    started: float
    ended: float
    was_load: bool


async def measure(policy: str, trace: Sequence[Arrival], fleet: Fleet, rate: float = RATE, **settings: str) -> Figures:
    """Return the figures of a trace under a policy. Idle in vain is not measured, and is 0."""
    async with AsyncExitStack() as stack:
        backends = [
            await stack.enter_async_context(_simulator(fleet, n, trace, rate)) for n in range(len(fleet.speeds))
        ]
        urls = [each.url for each in backends]
        if policy == NGINX:
            front = await stack.enter_async_context(servers.nginx(*urls))
            sources = urls
        else:
            tenants = sorted({each.tenant for each in trace})
            front = await stack.enter_async_context(_gateway(stack, urls, tenants, policy, rate, settings))
            sources = [front.url]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        if policy != NGINX:

            async def are_up() -> bool:
                async with http.get(f"{front.url}/readyz") as answer:
                    return bool((await answer.json())["backends_up"] == len(urls))

            await until(are_up, 60)
        began, ids = await _send(http, front.url, trace, rate)
        ended = await _all_ended(http, sources, ids, {each.tenant for each in trace}, rate)
    return _figures(trace, fleet, began, ids, ended, rate)


def _simulator(fleet: Fleet, place: int, trace: Sequence[Arrival], rate: float) -> Any:
    models = ",".join(sorted({each.kind.model for each in trace}))
    options = ["--port", "0", "--models", models, "--load-seconds", str(fleet.load_seconds), "--preview-method", "none"]
    options += ["--speed", str(fleet.speeds[place]), "--time-scale", str(1 / rate)]
    if fleet.keeps > 1:
        options += KEEP_ALL
    return servers.python("-m", "gateway.simulator", *options, core=servers.LOAD_CORE)


def _gateway(
    stack: AsyncExitStack, urls: list[str], tenants: list[str], policy: str, rate: float, settings: dict[str, str]
) -> Any:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-routing-", dir=Path.cwd())))
    config = directory / "gateway.yaml"
    keys = [{"name": name, "key": _key(name), "role": "user", "tenant": name} for name in tenants]
    keys.append({"name": "boss", "key": _key("boss"), "role": "admin"})
    config.write_text(yaml.safe_dump({"auth": {"keys": keys}}))
    environment = {"ROUTING__POLICY": policy, "PROBE__INTERVAL": "2", "DISPATCH__MAX_QUEUE": "16", **settings}
    return servers.gateway(
        *urls, config=config, module="benchmarks.routing.fast_gateway", routing_rate=rate, **environment
    )


def _key(name: str) -> str:
    return f"key-of-{name}-for-the-benchmark"


def graph(arrival: Arrival, seed: int) -> dict[str, Any]:
    """Return the graph of a job: its model and steps tell what it is, and its text how long it takes."""
    prompt = text_to_image(seed, arrival.kind.steps, f"{arrival.kind.model}.safetensors")
    prompt["2"]["inputs"]["text"] = f"an astronaut on a horse, work={arrival.seconds}"
    prompt["4"]["inputs"].update(width=64, height=64)
    return prompt


async def _send(
    http: aiohttp.ClientSession, url: str, trace: Sequence[Arrival], rate: float
) -> tuple[float, dict[str, int]]:
    """Send each job at its time. Return the time of the start, by the wall clock, and the jobs' places by their ids."""
    ids: dict[str, int] = {}
    began, began_at = time.time(), time.monotonic()

    async def one(place: int, arrival: Arrival) -> None:
        body = json.dumps({"prompt": graph(arrival, place)})
        headers = {"Content-Type": "application/json", "X-API-Key": _key(arrival.tenant)}
        async with http.post(f"{url}/prompt", data=body, headers=headers) as answer:
            said = await answer.json()
            assert answer.status == 200, said
            ids[said["prompt_id"]] = place

    tasks = []
    for place, arrival in enumerate(trace):
        await asyncio.sleep(max(began_at + arrival.at / rate - time.monotonic(), 0.0))
        tasks.append(asyncio.create_task(one(place, arrival)))
    await asyncio.gather(*tasks)
    return began, ids


async def _all_ended(
    http: aiohttp.ClientSession, sources: Sequence[str], ids: dict[str, int], tenants: set[str], rate: float
) -> dict[str, Ended]:
    """Wait until all jobs have ended. Return their runs by id."""
    found: dict[str, Ended] = {}

    async def look() -> bool:
        await asyncio.sleep(1.0)
        for source in sources:
            async with http.get(f"{source}/history", headers={"X-API-Key": _key("boss")}) as answer:
                for prompt_id, entry in (await answer.json()).items():
                    if prompt_id in ids and prompt_id not in found:
                        found[prompt_id] = _ended(entry)
        return len(found) == len(ids)

    await until(look, 600)
    return found


def _ended(entry: dict[str, Any]) -> Ended:
    assert entry["status"]["status_str"] == "success", entry["status"]
    said = dict(entry["status"]["messages"])
    times = [said[name]["timestamp"] / 1000 for name in ("execution_start", "execution_success")]
    return Ended(*times, was_load="1" not in said["execution_cached"]["nodes"])


def _figures(
    trace: Sequence[Arrival], fleet: Fleet, began: float, ids: dict[str, int], ended: dict[str, Ended], rate: float
) -> Figures:
    runs = [Run(place, arrival) for place, arrival in enumerate(trace)]
    for prompt_id, place in ids.items():
        each = ended[prompt_id]
        runs[place].started, runs[place].ended = (each.started - began) * rate, (each.ended - began) * rate
        runs[place].was_load = each.was_load
    took = sorted(run.ended - run.arrival.at for run in runs)
    span = max(run.ended for run in runs) - trace[0].at
    return Figures(
        sum(took) / len(took),
        took[int(0.95 * len(took))],
        span / end_bound(trace, fleet),
        sum(run.was_load for run in runs),
        jain(runs),
        0.0,
    )
