"""GET /view: bytes a second against a bare proxy and nginx; memory with 200 views in parallel."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import aiohttp
import psutil

from benchmarks import servers
from benchmarks.table import Row, in_turns, ratio

PARALLEL = 200
MIB = 2**20


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about /view."""
    with tempfile.TemporaryDirectory(prefix="bench-files-") as base:
        output = Path(base) / "output"
        output.mkdir()
        (output / "picture.png").write_bytes(bytes(range(256)) * (2 * MIB // 256))
        with (output / "large.mp4").open("wb") as file:
            file.truncate(64 * MIB)
        async with (
            servers.python(
                "-m", "gateway.simulator", "--port", "0", "--base-dir", base, core=servers.LOAD_CORE
            ) as simulator,
            servers.gateway(simulator.url) as gateway,
            servers.python("-m", "benchmarks.bare", "proxy", simulator.url) as proxy,
            servers.nginx(simulator.url) as nginx,
        ):
            await asyncio.sleep(1.5)
            rows = [
                await _bytes(gateway, proxy, "bare aiohttp proxy", "0.9", rounds, seconds),
                await _bytes(gateway, nginx, "nginx", "shown", rounds, seconds),
            ]
            rows.append(await _memory(gateway))
            return rows


async def _bytes(
    gateway: servers.Running, other: servers.Running, name: str, wanted: str, rounds: int, seconds: float
) -> Row:
    async def speed(url: str) -> float:
        return (await servers.wrk(f"{url}/view?filename=picture.png", seconds, connections=8))["bytes"] / MIB

    mine, theirs, ratios = await in_turns(rounds, lambda: speed(gateway.url), lambda: speed(other.url))
    return Row("GET /view, 2 MB", f"{mine:,.0f} MiB/s", f"{name} {theirs:,.0f} MiB/s", ratio(ratios), wanted)


async def _memory(gateway: servers.Running) -> Row:
    process = psutil.Process(gateway.process.pid)
    maximum = [process.memory_info().rss]
    before = maximum[0]

    async def sample() -> None:
        while True:
            maximum[0] = max(maximum[0], process.memory_info().rss)
            await asyncio.sleep(0.05)

    async def view(http: aiohttp.ClientSession) -> None:
        async with http.get(f"{gateway.url}/view?filename=large.mp4") as answer:
            # A slow reader: what is sent piles up somewhere, and must not pile up in the gateway.
            for _ in range(20):
                await answer.content.read(65536)
                await asyncio.sleep(0.1)
            answer.close()

    sampler = asyncio.create_task(sample())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(view(http) for _ in range(PARALLEL)))
    sampler.cancel()
    await asyncio.gather(sampler, return_exceptions=True)
    grown = (maximum[0] - before) / MIB
    figure = f"+{grown:.0f} MiB, {grown / PARALLEL:.2f} a view"
    return Row(f"memory with {PARALLEL} slow views of 64 MiB", figure, f"{PARALLEL * 64:,} MiB in all", "", "flat")


if __name__ == "__main__":
    print(asyncio.run(run(1, 2)))
