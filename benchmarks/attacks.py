"""What a case of `benchmarks.stalls` has at hand, and what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# After that long a silence an answer has come, or will never come.
SILENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Attack:
    """The gateway that is attacked: its address, keys by their names, and a client."""

    url: str
    port: int
    keys: dict[str, str]
    http: aiohttp.ClientSession

    async def raw(self, sent: bytes, *, times: int = 1) -> bytes:
        """Send bytes on a connection, with `times` as often, each after the answer before. Return the last answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        heard = b""
        try:
            for _ in range(times):
                writer.write(sent)
                heard = await answer_of(reader)
        except (ConnectionError, TimeoutError):
            # The gateway has cut the connection, or says nothing: that is for its figures to show.
            pass
        finally:
            writer.close()
        return heard

    async def each(self, requests: list[bytes], *, at_once: int = 8) -> int:
        """Send each request on a connection of its own. Return how many that were."""
        room = asyncio.Semaphore(at_once)

        async def one(request: bytes) -> None:
            async with room:
                await self.raw(request)

        await asyncio.gather(*(one(request) for request in requests))
        return len(requests)


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Read one answer: its head, and as much as its Content-Length says."""
    async with asyncio.timeout(SILENCE_SECONDS):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
            length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
            return head + await reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            return error.partial


@dataclass(frozen=True, slots=True)
class Case:
    """One attack, and what it may cost.

    `attack` sends it and returns how many requests that were. `bound` is in milliseconds: of the longest stall, or with
    `is_each` of CPU time for each request. `settings` are those of the gateway, as its environment has them. `backend`
    are the arguments that start its backend in Python, `backends` how many of them there are. With `counts_threads` the
    longest stall is that of the loop whatever held it.
    """

    name: str
    attack: Callable[[Attack], Awaitable[int]]
    bound: float = 50.0
    is_each: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    backend: tuple[str, ...] = ("-m", "gateway.simulator", "--port", "0")
    backends: int = 1
    counts_threads: bool = False
