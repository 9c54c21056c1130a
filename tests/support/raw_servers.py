"""Servers at raw sockets that leave no connection open when they are closed.

`asyncio.Server.close` ends listening alone. A connection that a handler has not closed by then is collected some tests
later, and its warning fails whichever test runs then.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from socket import socket

from tests.support.listening import accept_no_more, settle

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class RawServer:
    """A server and the connections that it has accepted."""

    def __init__(self, server: asyncio.Server, writers: list[asyncio.StreamWriter]) -> None:
        self._server = server
        self._writers = writers

    @property
    def sockets(self) -> Sequence[socket]:
        """The sockets that listen."""
        return self._server.sockets

    async def close(self) -> None:
        """End listening, and every connection."""
        await accept_no_more(self._server.sockets)
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await settle()

    async def __aenter__(self) -> RawServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def start_raw_server(
    handle: Handle, host: str = "127.0.0.1", port: int = 0, *, ssl: ssl.SSLContext | None = None
) -> RawServer:
    """Start a server."""
    writers: list[asyncio.StreamWriter] = []

    async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        answered = handle(reader, writer)
        if answered is not None:
            await answered

    return RawServer(await asyncio.start_server(handled, host, port, ssl=ssl), writers)
