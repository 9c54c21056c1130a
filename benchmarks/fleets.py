"""CPU time of POST /prompt before a large fleet, against that before three backends, by routing policy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from benchmarks import servers
from benchmarks.prompts import body_of_3_kb, send
from benchmarks.table import Row, in_turns, ratio
from tests.support.lab import until

FEW, MANY = 3, 256


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, by the kernel's scheduler."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


@asynccontextmanager
async def _fleet(count: int, policy: str) -> AsyncIterator[servers.Running]:
    """A gateway before so many backends that accept prompts and never run them."""
    async with AsyncExitStack() as stack:
        fleet = servers.python("-m", "benchmarks.bare", "backends", str(count), core=servers.LOAD_CORE)
        first = await stack.enter_async_context(fleet)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        async with http.get(f"{first.url}/ports") as answer:
            urls = [f"http://127.0.0.1:{port}" for port in await answer.json()]
        gateway = await stack.enter_async_context(servers.gateway(*urls, ROUTING__POLICY=policy))

        async def are_up() -> bool:
            async with http.get(f"{gateway.url}/readyz") as answer:
                return bool((await answer.json())["backends_up"] == count)

        await until(are_up, 60)
        before = cpu_seconds(gateway.process.pid)

        async def is_settled() -> bool:
            # The catalogues of all backends are merged in a thread, which takes some seconds after the start.
            nonlocal before
            await asyncio.sleep(1)
            was, before = before, cpu_seconds(gateway.process.pid)
            return before - was < 0.2

        await until(is_settled, 120)
        yield gateway


async def _milliseconds(gateway: servers.Running, prompts: int) -> float:
    """CPU time of each of some prompts."""
    async with aiohttp.ClientSession() as http:
        began = cpu_seconds(gateway.process.pid)
        await send(http, gateway.url, body_of_3_kb().encode(), prompts, at_once=8)
        return (cpu_seconds(gateway.process.pid) - began) / prompts * 1000


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about large fleets."""
    rows = []
    for policy in ("shortest_queue", "least_work"):
        async with _fleet(FEW, policy) as few, _fleet(MANY, policy) as many:
            for gateway in (few, many):
                await _milliseconds(gateway, 300)
            # Each backend has at least two of them then: the usual state of a busy fleet.
            await _milliseconds(many, 2 * MANY)
            large, small, ratios = await in_turns(
                4 * rounds, lambda: _milliseconds(many, 200), lambda: _milliseconds(few, 200)
            )
        what = f"POST /prompt, 3 KB, {MANY} backends, {policy}"
        rows.append(Row(what, f"{large:.2f} ms", f"{FEW} backends {small:.2f} ms", ratio(ratios), "≤ 1.3"))
    return rows
