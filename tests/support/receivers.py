"""Receivers of webhooks at raw sockets: they say what they are told to say, and count who connects."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.support.raw_servers import start_raw_server

OK = b"HTTP/1.1 204 No Content\r\n\r\n"
Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawReceiver:
    """A receiver on one address and port.

    Args:
        answer: the bytes to answer each request with, after which the connection is closed; or what to do instead, once
            the request is read.
    """

    def __init__(self, answer: bytes | Reply = OK) -> None:
        self.connections = 0
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.first_lines: list[str] = []
        self.closed = asyncio.Event()
        self.port = 0
        self._answer = answer

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a request, and answer it."""
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip("\r\n").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.first_lines.append(first)
            self.requests.append((headers, body))
            if isinstance(self._answer, bytes):
                writer.write(self._answer)
                await writer.drain()
            else:
                await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            return
        finally:
            writer.close()
            self.closed.set()


@asynccontextmanager
async def receiving(
    answer: bytes | Reply = OK, host: str = "127.0.0.2", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawReceiver]:
    """Run a receiver."""
    receiver = RawReceiver(answer)
    server = await start_raw_server(receiver.handle, host, port, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        await server.close()
