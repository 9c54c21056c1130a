"""Longest stalls: what the worst that somebody may send costs the loop, and how much memory it takes.

To add a case, write a coroutine that takes an `Attack` and returns how many requests it made, and put it into `CASES`.
``python -m benchmarks.stalls [PART OF A NAME…]`` runs those alone and prints all figures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from pathlib import Path

import aiohttp
import yaml

from benchmarks import backends, bodies, catalogues, results, servers, sockets
from benchmarks.attacks import Attack, Case
from benchmarks.prompts import wait_until_up
from benchmarks.strangers import STRANGERS
from benchmarks.table import Row

CASES: tuple[Case, ...] = (
    *STRANGERS,
    *bodies.CASES,
    *sockets.CASES,
    *backends.CASES,
    *results.CASES,
    *catalogues.CASES,
)

# Carl may not use all models.
_KEYS = {name: f"a-key-of-the-benchmark-{name}" for name in ("anna", "ben", "boss", "carl")}
_TENANTS = {"named": {"carl": {"models": {"deny": ["*3.safetensors"]}}}}
_WARM_UP = b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n"


async def run(rounds: int, seconds: float) -> list[Row]:
    """A row for each case; rounds change nothing."""
    return [row(*measured) async for measured in measure(CASES)]


def row(case: Case, count: int, figures: dict[str, float]) -> Row:
    """A case's line in the table."""
    found = figures["cpu"] / count if case.is_each else figures["piece"]
    if case.counts_threads:
        found = max(found, figures["every"])
    shown = f"{found:.2f} ms, {figures['grown']:+.1f} MB (at most {figures['peak']:+.1f})"
    what = "CPU of a request" if case.is_each else "longest callback"
    return Row(f"{what}: {case.name}", shown, "", f"{found / case.bound:.2f} of the bound", f"{case.bound:g} ms")


async def measure(cases: Iterable[Case]) -> AsyncIterator[tuple[Case, int, dict[str, float]]]:
    """Send attacks: each case, how many requests that were, and what they cost (`benchmarks.watched`).

    Each case has a gateway of its own, but those whose CPU time is counted by requests share one.
    """
    for (is_each, _), found in groupby(cases, lambda case: (case.is_each, case.settings)):
        group = list(found)
        for part in [group] if is_each else [[case] for case in group]:
            async with _gateway(part[0]) as (attack, watch):
                await attack.raw(_WARM_UP, times=200)
                idle = min([await watch.figures(pause=0.25) for _ in range(3)], key=lambda figures: figures["cpu"])
                for case in part:
                    await watch.figures()
                    count = await case.attack(attack)
                    figures = await watch.figures()
                    # The heartbeat costs something, too.
                    beats = idle["cpu"] * figures["seconds"] / idle["seconds"]
                    figures["cpu"] = max(0.0, figures["cpu"] - beats)
                    yield case, count, figures


class Watch:
    """Asks a watched gateway for its figures."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def figures(self, pause: float = 0.0) -> dict[str, float]:
        """Return those since the last time; with `pause` those of so many seconds."""
        if pause:
            await self.figures()
            await asyncio.sleep(pause)
        self._writer.write(b"figures\n")
        figures: dict[str, float] = json.loads(await self._reader.readline())
        return figures


@asynccontextmanager
async def _gateway(case: Case) -> AsyncIterator[tuple[Attack, Watch]]:
    with tempfile.TemporaryDirectory(prefix="bench-stalls-") as directory:
        config, socket = Path(directory) / "gateway.yaml", Path(directory) / "watch"
        roles = {"boss": "admin"}
        keys = [{"name": name, "key": key, "role": roles.get(name, "user")} for name, key in _KEYS.items()]
        config.write_text(yaml.safe_dump({"auth": {"keys": keys}, "tenants": _TENANTS}))
        async with AsyncExitStack() as stack:
            started = [
                await stack.enter_async_context(servers.python(*case.backend, core=servers.LOAD_CORE))
                for _ in range(case.backends)
            ]
            urls = [each.url for each in started]
            serving = servers.gateway(*urls, config=config, watch=socket, **case.settings)
            gateway = await stack.enter_async_context(serving)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            await wait_until_up(http, gateway.url)
            reader, writer = await asyncio.open_unix_connection(str(socket))
            yield Attack(gateway.url, gateway.port, _KEYS, http), Watch(reader, writer)
            writer.close()


async def _main(wanted: list[str]) -> None:
    cases = [case for case in CASES if not wanted or any(part in case.name for part in wanted)]
    async for case, count, figures in measure(cases):
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        print(f"{row(case, count, figures)}\n    {count} requests, {shown}", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
