"""The serverless surface: POST /api/v2/jobs beside POST /prompt, 2,000 event streams at once, answers that wait."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from benchmarks import servers
from benchmarks.prompts import body_of_3_kb, wait_until_up
from benchmarks.stalls import Watch
from benchmarks.table import Row, in_turns, ratio
from tests.support.workflows import slow

STREAMS, WATCHED_JOBS, BACKENDS = 2_000, 100, 4
# Streams that are opened at a time: a listening socket has a queue of 128.
OPENED_AT_ONCE = 64
TERMINAL = ("succeeded", "failed", "canceled", "expired")
_KEY = "a-key-of-the-benchmark-anna"


async def run(rounds: int, seconds: float) -> list[Row]:
    """All rows."""
    return [*await _posted(rounds, seconds), *await _streams(), *await _waits(rounds, seconds)]


# -- POST /api/v2/jobs -------------------------------------------------------------------------------------------------


async def _posted(rounds: int, seconds: float) -> list[Row]:
    """Compare the rates, and the CPU time of a request, of which other programs on the machine take nothing."""
    native = body_of_3_kb()
    v2 = json.dumps({"workflow": json.loads(native)["prompt"]})
    cpu: dict[str, list[float]] = {"/api/v2/jobs": [], "/prompt": []}
    async with servers.python("-m", "benchmarks.bare", "backend", core=servers.LOAD_CORE) as backend:

        async def rate(path: str, body: str) -> float:
            script = f"wrk.method='POST'\nwrk.body=[==[{body}]==]\nwrk.headers['Content-Type']='application/json'\n"
            # A fresh gateway each time: it keeps what it accepted.
            async with servers.gateway(backend.url) as gateway, aiohttp.ClientSession() as http:
                await wait_until_up(http, gateway.url)
                process = psutil.Process(gateway.process.pid)
                before = sum(process.cpu_times()[:2])
                found = (await servers.wrk(gateway.url + path, seconds, script=script))["rate"]
                cpu[path].append((sum(process.cpu_times()[:2]) - before) / (found * seconds) * 1000)
                return found

        mine, other, ratios = await in_turns(rounds, lambda: rate("/api/v2/jobs", v2), lambda: rate("/prompt", native))
    ours, theirs = cpu["/api/v2/jobs"], cpu["/prompt"]
    costs = [before / after for after, before in zip(ours, theirs, strict=True)]
    return [
        Row("POST /api/v2/jobs, 3 KB", f"{mine:,.0f}/s", f"POST /prompt {other:,.0f}/s", ratio(ratios), "0.8"),
        Row(
            "POST /api/v2/jobs, 3 KB: CPU time",
            f"{statistics.median(ours):.2f} ms",
            f"POST /prompt {statistics.median(theirs):.2f} ms",
            ratio(costs),
            "0.8",
        ),
    ]


# -- event streams -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _watched() -> AsyncIterator[tuple[aiohttp.ClientSession, str, Watch]]:
    """A watched gateway over simulators, a session of its client's, and its figures."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-serverless-")))
        config, path = directory / "gateway.yaml", directory / "watch"
        config.write_text(yaml.safe_dump({"auth": {"keys": [{"name": "anna", "key": _KEY, "role": "user"}]}}))
        simulator = ("-m", "gateway.simulator", "--port", "0", "--cache-none")
        backends = [
            await stack.enter_async_context(servers.python(*simulator, core=servers.LOAD_CORE)) for _ in range(BACKENDS)
        ]
        gateway = await stack.enter_async_context(
            servers.gateway(
                *(each.url for each in backends),
                config=config,
                watch=path,
                lateness_alone=True,
                V2__MAX_STREAMS=str(2 * STREAMS),
                SERVER__MAX_CONNECTIONS_PER_ADDRESS=str(2 * STREAMS),
            )
        )
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {_KEY}"},
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        )
        await wait_until_up(http, gateway.url)
        reader, writer = await asyncio.open_unix_connection(str(path))
        stack.callback(writer.close)
        yield http, gateway.url, Watch(reader, writer)


async def _submit(http: aiohttp.ClientSession, url: str, graph: dict[str, Any]) -> Any:
    async with http.post(f"{url}/api/v2/jobs", json={"workflow": graph}) as answer:
        answer.raise_for_status()
        return await answer.json()


async def _streams() -> list[Row]:
    """Open the streams while all watched jobs wait, then let these run."""
    async with _watched() as (http, url, watch):
        holding = [await _submit(http, url, slow(n, steps=1_000, step_seconds=1)) for n in range(BACKENDS)]
        jobs = [await _submit(http, url, slow(n, steps=5, step_seconds=0.05)) for n in range(WATCHED_JOBS)]
        links = [job["urls"]["events"] for job in jobs] * (STREAMS // WATCHED_JOBS)
        readers = await _opened(http, links[:OPENED_AT_ONCE])
        # What the first ones took is not counted.
        await watch.figures()
        readers += await _opened(http, links[OPENED_AT_ONCE:])
        opening = await watch.figures()
        grown = opening["grown"]
        idle = await watch.figures(pause=2.0)
        for job in holding:
            async with http.post(job["urls"]["cancel"]) as answer:
                answer.raise_for_status()
        began = time.monotonic()
        ends = await asyncio.gather(*(_end(each) for each in readers))
        took, running = time.monotonic() - began, await watch.figures()
    return _rows_of_streams(ends, took, grown, idle, running)


def _rows_of_streams(
    ends: list[tuple[str, int]], took: float, grown: float, idle: dict[str, float], running: dict[str, float]
) -> list[Row]:
    statuses = Counter(status for status, _ in ends)
    events = sum(count for _, count in ends)
    what = f"{STREAMS:,} event streams of {WATCHED_JOBS} jobs at once"
    delays = [f"p99 {each['late_p99']:.1f} ms, max {each['late']:.1f} ms" for each in (running, idle)]
    cpu = running["cpu"] / running["seconds"] / 10
    each = grown * 1e6 / (STREAMS - OPENED_AT_ONCE)
    return [
        Row(f"{what}: terminal events", f"{statuses['succeeded']:,}", "", "", f"{STREAMS:,}"),
        Row(
            f"{what}: loop delay while the jobs run",
            f"{delays[0]}; {events / took:,.0f} events/s, {cpu:.0f} % CPU",
            f"while they wait {delays[1]}",
            "",
            "shown",
        ),
        Row(f"{what}: memory of one", f"{each:,.0f} bytes", "", "", "shown"),
    ]


async def _opened(http: aiohttp.ClientSession, urls: list[str]) -> list[aiohttp.ClientResponse]:
    """Open streams, and read the first event of each."""
    limit = asyncio.Semaphore(OPENED_AT_ONCE)

    async def one(url: str) -> aiohttp.ClientResponse:
        async with limit:
            response = await http.get(url)
            response.raise_for_status()
            await response.content.readuntil(b"\n\n")
            return response

    return await asyncio.gather(*(one(url) for url in urls))


async def _end(response: aiohttp.ClientResponse) -> tuple[str, int]:
    """Read a stream to its end. Return the last status, empty if it is no terminal one, and the number of events."""
    name, last, count = b"", "", 0
    async for line in response.content:
        if line.startswith(b"event: "):
            name, count = line.removeprefix(b"event: ").strip(), count + 1
            last = ""
        elif line.startswith(b"data: ") and name == b"status":
            last = json.loads(line.removeprefix(b"data: "))["status"]
    return last if last in TERMINAL else "", count


# -- answers that wait -------------------------------------------------------------------------------------------------


async def _waits(rounds: int, seconds: float) -> list[Row]:
    """A short job by one answer that waits, and by a socket and its history entry."""
    async with (
        servers.python("-m", "gateway.simulator", "--port", "0", "--cache-none", core=servers.LOAD_CORE) as simulator,
        servers.gateway(simulator.url) as gateway,
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{gateway.url}/ws?clientId=bench", max_msg_size=0) as socket,
    ):
        await wait_until_up(http, gateway.url)
        seeds = itertools.count(1)

        async def native() -> None:
            prompt = {"prompt": slow(next(seeds), steps=1, step_seconds=0.0), "client_id": "bench"}
            async with http.post(f"{gateway.url}/prompt", json=prompt) as answer:
                prompt_id = (await answer.json())["prompt_id"]
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT and prompt_id in message.data:
                    data = json.loads(message.data)
                    if data["type"] == "executing" and data["data"]["node"] is None:
                        break
            async with http.get(f"{gateway.url}/history/{prompt_id}") as answer:
                assert (await answer.json())[prompt_id]["status"]["completed"]

        async def wait() -> None:
            body = {"workflow": slow(next(seeds), steps=1, step_seconds=0.0)}
            async with http.post(f"{gateway.url}/api/v2/jobs", json=body, headers={"Prefer": "wait=30"}) as answer:
                assert (await answer.json())["status"] == "succeeded"

        async def run_graph() -> None:
            async with http.post(f"{gateway.url}/gateway/run", json=slow(next(seeds), steps=1, step_seconds=0.0)) as it:
                assert (await it.json())["status"] == "succeeded"

        await _median_ms(native, 0.5)
        rows = []
        for name, one in (("POST /api/v2/jobs with Prefer: wait", wait), ("POST /gateway/run", run_graph)):
            await _median_ms(one, 0.5)
            mine, other, ratios = await in_turns(
                rounds, lambda one=one: _median_ms(one, seconds), lambda: _median_ms(native, seconds)
            )
            yardstick = f"POST /prompt, its end on /ws, /history/{{id}}: {other:.1f} ms"
            rows.append(Row(f"{name}: a job of one step", f"{mine:.1f} ms", yardstick, ratio(ratios), "shown"))
        return rows


async def _median_ms(one: Callable[[], Awaitable[None]], seconds: float) -> float:
    """Do something one after the other for so long. Return the median time of one in milliseconds."""
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end or not took:
        began = time.monotonic()
        await one()
        took.append(time.monotonic() - began)
    return statistics.median(took) * 1000
