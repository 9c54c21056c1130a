"""POST /prompt, with the journal on, against a proxy without one; routing decisions; memory of waiting jobs."""

from __future__ import annotations

import asyncio
import json
import timeit

import aiohttp
import psutil

from benchmarks import servers
from benchmarks.table import Row, in_turns, ratio
from gateway.comfy.graph import survey
from gateway.jobs.routing.policies.shortest_queue import ShortestQueue
from gateway.jobs.routing.signature import read_workload
from gateway.jobs.routing.snapshot import BackendView, Board, Head, Snapshot
from gateway.jobs.routing.times import Times
from tests.support.lab import until
from tests.support.workflows import text_to_image

WAITING = 10_000


def body_of_3_kb() -> str:
    """A prompt of 3 KB."""
    prompt = text_to_image()
    prompt["2"]["inputs"]["text"] = "an astronaut on a horse, " * 60
    return json.dumps({"prompt": prompt, "client_id": "bench"})


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about prompts."""
    return [await _post(rounds, seconds), _decision(), await _waiting()]


async def posted(url: str, seconds: float, body: str, key: str = "") -> float:
    """POST /prompt requests a second that are answered with 200."""
    headers = {"Content-Type": "application/json", **({"X-API-Key": key} if key else {})}
    lines = [f"wrk.headers['{name}']='{value}'" for name, value in headers.items()]
    script = "\n".join(["wrk.method='POST'", f"wrk.body=[==[{body}]==]", *lines, ""])
    return (await servers.wrk(f"{url}/prompt", seconds, script=script))["rate"]


async def _rate(url: str, seconds: float) -> float:
    return await posted(url, seconds, body_of_3_kb())


async def accepted(backend: str, seconds: float, **settings: str) -> float:
    """Prompts that a gateway accepts in a second. A fresh one each time: it keeps what it accepted."""
    async with servers.gateway(backend, **settings) as gateway, aiohttp.ClientSession() as http:
        await wait_until_up(http, gateway.url)
        return await _rate(gateway.url, seconds)


async def _post(rounds: int, seconds: float) -> Row:
    async with servers.python("-m", "benchmarks.bare", "backend", core=servers.LOAD_CORE) as backend:

        async def theirs() -> float:
            async with servers.python("-m", "benchmarks.bare", "proxy", backend.url) as proxy:
                return await _rate(proxy.url, seconds)

        mine, other, ratios = await in_turns(rounds, lambda: accepted(backend.url, seconds), theirs)
    bare = f"bare aiohttp proxy, no journal {other:,.0f}/s"
    return Row("POST /prompt, 3 KB, journal FULL", f"{mine:,.0f}/s", bare, ratio(ratios), "0.5")


async def wait_until_up(http: aiohttp.ClientSession, url: str) -> None:
    """Wait until a gateway has a backend that takes work."""

    async def look() -> bool:
        async with http.get(f"{url}/readyz") as answer:
            return bool((await answer.json())["backends_up"])

    await until(look)


def _decision() -> Row:
    board = Board(BackendView(f"b{n}", 16, pending=n % 7, running=n % 2, used_at=float(n)) for n in range(64))
    snapshot = Snapshot(0.0, board, (Head("one", read_workload({}, survey({}))),), Times())
    policy, count = ShortestQueue(), 2000
    seconds = min(timeit.repeat(lambda: policy.choose(snapshot), number=count, repeat=5)) / count
    return Row("one routing decision, 64 backends", f"{seconds * 1e6:.0f} µs", "", "", "shown")


async def _waiting() -> Row:
    """Memory of a job that waits: 64 backends that are down, 10,000 prompts."""
    backends = [f"http://127.0.0.1:{port}" for port in range(1, 65)]
    async with servers.gateway(*backends) as gateway, aiohttp.ClientSession() as http:
        process = psutil.Process(gateway.process.pid)
        body = body_of_3_kb().encode()
        await send(http, gateway.url, body, 200, at_once=32)
        before = process.memory_info().rss
        await send(http, gateway.url, body, WAITING - 200, at_once=32)
        after = process.memory_info().rss
    each = (after - before) / (WAITING - 200)
    return Row(
        f"memory of a waiting job ({len(body)} bytes), {WAITING:,} waiting", f"{each:,.0f} bytes", "", "", "shown"
    )


async def send(http: aiohttp.ClientSession, url: str, body: bytes, count: int, *, at_once: int) -> None:
    """POST a prompt `count` times; each must be accepted."""
    limit = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with limit, http.post(f"{url}/prompt", data=body) as answer:
            answer.raise_for_status()

    await asyncio.gather(*(one() for _ in range(count)))
