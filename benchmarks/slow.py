"""1,000 connections that never finish their headers, and what another client notices of them.

``python -m benchmarks.slow PORT`` is the thousand, as a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import time
from collections.abc import AsyncIterator

import aiohttp

from benchmarks import servers
from benchmarks.table import Row, in_turns, ratio

CROWD = 1_000
# Requests a second of the client that is looked at: so few that it waits for none of its own.
RATE = 100


async def run(rounds: int, seconds: float) -> list[Row]:
    """The row: p99 of GET /queue with the thousand, and without them."""
    async with (
        servers.python("-m", "gateway.simulator", "--port", "0", core=servers.LOAD_CORE) as simulator,
        servers.gateway(simulator.url, SERVER__MAX_CONNECTIONS_PER_ADDRESS="4096") as gateway,
        aiohttp.ClientSession() as http,
    ):

        async def p99() -> float:
            return await _p99(http, gateway.url, max(seconds, 2))

        async def with_crowd() -> float:
            async with _crowd(gateway.port):
                return await p99()

        mine, other, ratios = await in_turns(rounds, with_crowd, p99)
    what = f"GET /queue, p99 of {RATE}/s with {CROWD:,} connections that never finish their headers"
    return [Row(what, f"{mine:.1f} ms", f"without them {other:.1f} ms", ratio(ratios), "shown")]


async def _p99(http: aiohttp.ClientSession, url: str, seconds: float) -> float:
    """Milliseconds that an answer takes, at a steady rate; each must be one."""
    took = []
    for _ in range(int(seconds * RATE)):
        began = time.perf_counter()
        async with http.get(f"{url}/queue") as answer:
            answer.raise_for_status()
            await answer.read()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(max(0.0, 1 / RATE - took[-1]))
    return sorted(took)[int(len(took) * 0.99)] * 1000


@contextlib.asynccontextmanager
async def _crowd(port: int) -> AsyncIterator[None]:
    async with servers.python("-m", "benchmarks.slow", str(port), core=servers.LOAD_CORE):
        yield


async def _stand(port: int) -> None:
    """So many connections, each closed by the gateway after a while and opened anew."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CROWD), hard))
    # The client that is looked at shares this core, and must not wait for it.
    os.nice(19)
    connected = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(_dribble(port, connected)) for _ in range(CROWD)]
    for _ in tasks:
        await connected.acquire()
    print(f"{CROWD} connections to http://127.0.0.1:{port}", flush=True)
    await asyncio.gather(*tasks)


async def _dribble(port: int, connected: asyncio.Semaphore) -> None:
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            continue
        connected.release()
        writer.write(b"GET /queue HTTP/1.1\r\nHost: x\r\n")
        closed = asyncio.ensure_future(reader.read(1))
        while not closed.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.wait([closed], timeout=1)
        await asyncio.gather(closed, return_exceptions=True)
        writer.close()


if __name__ == "__main__":
    asyncio.run(_stand(int(sys.argv[1])))
