"""1,000 WebSockets and 20,000 events a second: the delay that the gateway adds, and the memory of an idle socket."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import psutil

from benchmarks import servers
from benchmarks.prompts import wait_until_up
from benchmarks.table import Row
from tests.workflows import slow

SOCKETS = 1000


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about sockets."""
    rows = []
    async with (
        servers.python("-m", "benchmarks.bare", "source", core=servers.LOAD_CORE) as source,
        servers.gateway(source.url) as gateway,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        await wait_until_up(http, gateway.url)
        process = psutil.Process(gateway.process.pid)
        before = process.memory_info().rss
        sockets = [await http.ws_connect(f"{gateway.url}/ws?clientId=c{n}&events=interleave") for n in range(SOCKETS)]
        each = (process.memory_info().rss - before) / SOCKETS
        for n in range(SOCKETS):
            async with http.post(f"{gateway.url}/prompt", json={"prompt": slow(n), "client_id": f"c{n}"}) as answer:
                answer.raise_for_status()
        for rate in (2_000, 10_000, 20_000):
            rows.append(await _delays(http, source.url, sockets, rate, max(seconds, 3)))
        for socket in sockets:
            await socket.close()
    rows.append(Row(f"memory of an idle socket, {SOCKETS:,} open", f"{each:,.0f} bytes", "", "", "shown"))
    return rows


async def _delays(
    http: aiohttp.ClientSession, source: str, sockets: list[aiohttp.ClientWebSocketResponse], rate: int, seconds: float
) -> Row:
    through: list[float] = []
    direct: list[float] = []
    listener = await http.ws_connect(f"{source}/ws")
    tasks = [asyncio.create_task(_listen(socket, through)) for socket in sockets]
    tasks.append(asyncio.create_task(_listen(listener, direct)))
    async with http.post(f"{source}/emit", json={"rate": rate, "seconds": seconds}) as answer:
        sent = (await answer.json())["sent"]
    for _ in range(100):
        if len(through) >= sent:
            break
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await listener.close()
    through.sort()
    direct.sort()

    def at(values: list[float], share: float) -> float:
        return values[min(int(len(values) * share), len(values) - 1)] * 1000 if values else float("nan")

    added = f"+{at(through, 0.5) - at(direct, 0.5):.1f} / +{at(through, 0.99) - at(direct, 0.99):.1f} ms"
    arrived = f"{len(through):,} of {sent:,} arrived"
    straight = f"a direct socket {at(direct, 0.5):.1f} / {at(direct, 0.99):.1f} ms"
    return Row(
        f"{rate:,} events/s to {SOCKETS:,} sockets: delay p50 / p99", f"{added}; {arrived}", straight, "", "shown"
    )


async def _listen(socket: aiohttp.ClientWebSocketResponse, delays: list[float]) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT and '"sent"' in message.data:
            delays.append(time.time() - json.loads(message.data)["data"]["sent"])
