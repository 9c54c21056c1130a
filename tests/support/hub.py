"""A hub of sessions on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
from aiohttp import web

from gateway.bus import LocalBus, session_topic
from gateway.comfy.events import Frame, Kind
from gateway.jobs.routing.eta import Shown
from gateway.jobs.state.history import History
from gateway.jobs.state.ledger import Ledger
from gateway.sessions.hub import Hub
from gateway.settings import SessionSettings
from gateway.telemetry.metrics import Metrics
from tests.support.listening import cleaned_up

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class ServedHub:
    """A hub behind a real server. Each socket's tenant is its query's `tenant`."""

    def __init__(self, **settings: Any) -> None:
        self.bus = LocalBus()
        nowhere: Any = None
        self.ledger = Ledger(nowhere, self.bus, History(nowhere, 10, 1000), "gateway")
        self.metrics = Metrics()
        self.hub = Hub(
            *(self.ledger, self.bus, self.metrics, SessionSettings(**settings)),
            lambda _: {"a": True},
            lambda _: Shown(0, 0, None, None, 0.0),
        )
        self.port = 0
        self.http = aiohttp.ClientSession()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """GET /ws."""
        return await self.hub.serve(request, request.query["tenant"])

    def publish(self, session: str, kind: Kind, payload: bytes, tenant: str = "t") -> None:
        """Tell a session something."""
        self.bus.publish(session_topic(tenant, session), Frame(kind, payload, "p", str(kind), binary=True))

    async def listen(self, session: str = "s", tenant: str = "t") -> aiohttp.ClientWebSocketResponse:
        """Open a socket that reads; its greeting is read."""
        url = f"http://127.0.0.1:{self.port}/ws?clientId={session}&tenant={tenant}"
        socket = await self.http.ws_connect(url, max_msg_size=0, autoping=False)
        assert json.loads((await socket.receive()).data)["data"]["sid"] == session
        return socket

    async def raw(self, session: str = "s", tenant: str = "t") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a socket that a test writes by hand, and that reads no more than it asks for."""
        plain = sockets.socket()
        plain.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
        writer.write(
            f"GET /ws?clientId={session}&tenant={tenant} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
            "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        assert b"deflate" not in head
        return reader, writer

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Let the loop run until something is so."""
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def served_hub(**settings: Any) -> AsyncIterator[ServedHub]:
    """Serve for a test, which fails if it takes longer than a machine at its worst would need."""
    made = ServedHub(**settings)
    app = web.Application()
    app.router.add_get("/ws", made.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    try:
        async with asyncio.timeout(20):
            yield made
    finally:
        await made.http.close()
        await made.hub.close()
        await cleaned_up(runner)
        assert len(made.hub) == made.hub.buffered == 0


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A client's frame. The mask is all zeros."""
    first = opcode | (0x80 if fin else 0) | (0x40 if rsv1 else 0)
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 65536:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload
