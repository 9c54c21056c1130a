"""A batch on backends of unequal speed, with and without work stealing: makespan over the lower bound.

All jobs are alike, and a backend i runs one at a time in t_i seconds, measured on it alone just before. In T seconds
it ends floor(T / t_i) of them at most, whoever sends them. So no gateway can be done before

    bound = the smallest T for which the sum of floor(T / t_i) over all backends is at least the number of jobs

and the figure is the time from the first POST until nothing is open, divided by that.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import aiohttp

from benchmarks import servers
from benchmarks.table import Row, in_turns, ratio
from tests.support.comfy_client import Comfy
from tests.support.lab import until
from tests.support.workflows import text_to_image

SPEEDS = (1, 2, 4)
STEPS = 4
# Defaults, which the other benchmarks change.
_SETTINGS = {"PROBE__INTERVAL": "2", "DISPATCH__MAX_QUEUE": "16"}
_AT_A_TIME = 8


def lower_bound(jobs: int, seconds_each: Sequence[float]) -> float:
    """Seconds that so many equal jobs take at least, where each backend needs so long for one of them.

    The sum of floor(T / t_i) grows only at multiples of some t_i, so the smallest T is one of those.
    """
    ends = sorted(seconds * count for seconds in seconds_each for count in range(1, jobs + 1))
    return ends[jobs - 1]


async def run(rounds: int, seconds: float) -> list[Row]:
    """The row about a batch."""
    del seconds
    is_quick = rounds == 1
    jobs, slowest, turns = (48, 40.0, 1) if is_quick else (400, 13.0, 3)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        simulators = [
            await stack.enter_async_context(
                servers.python(
                    *("-m", "gateway.simulator", "--port", "0", "--steps-per-second", str(slowest * speed)),
                    core=servers.LOAD_CORE,
                )
            )
            for speed in SPEEDS
        ]
        urls = [simulator.url for simulator in simulators]

        async def makespan(take_over: str) -> float:
            bound = lower_bound(jobs, [await _seconds_each(http, url) for url in urls])
            async with servers.gateway(*urls, DISPATCH__WORK_STEALING=take_over, **_SETTINGS) as gateway:
                return await _batch(http, gateway.url, jobs) / bound

        mine, without, ratios = await in_turns(turns, lambda: makespan("true"), lambda: makespan("false"))
    return [
        Row(
            f"{jobs} jobs on backends of speed 1, 2 and 4: makespan over the lower bound",
            f"{mine:.2f}",
            f"without work stealing {without:.2f}",
            ratio(ratios),
            "shown",
        )
    ]


async def _seconds_each(http: aiohttp.ClientSession, url: str) -> float:
    """How long a backend takes for one job, by itself: the median of a few in a row."""
    comfy = Comfy(http, url)
    listener = await comfy.listen("bench")
    ends = [time.perf_counter()]
    ids = [await comfy.prompt(text_to_image(seed, STEPS), "bench") for seed in range(6)]
    for prompt_id in ids:
        await listener.end_of(prompt_id)
        ends.append(time.perf_counter())
    await listener.socket.close()
    return statistics.median(after - before for before, after in itertools.pairwise(ends[1:]))


async def _batch(http: aiohttp.ClientSession, url: str, jobs: int) -> float:
    comfy, limit = Comfy(http, url), asyncio.Semaphore(_AT_A_TIME)

    async def up() -> bool:
        return bool((await comfy.get("/readyz"))["backends_up"] == len(SPEEDS))

    async def post(seed: int) -> None:
        async with limit:
            await comfy.prompt(text_to_image(seed, STEPS))

    async def over() -> bool:
        return bool((await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 0)

    await until(up)
    began = time.perf_counter()
    await asyncio.gather(*map(post, range(jobs)))
    await until(over, 300, "all have ended")
    return time.perf_counter() - began
