"""Sockets as the hub serves them, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.bus import LocalBus, session_topic, status_topic
from gateway.comfy.events import Frame, Kind
from gateway.jobs.state.history import History
from gateway.jobs.state.ledger import Ledger
from gateway.sessions.hub import Hub
from gateway.settings import SessionSettings
from gateway.telemetry.metrics import Metrics

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class House:
    """A hub behind a real server. Each socket's tenant is its query's `tenant`."""

    def __init__(self, **settings: Any) -> None:
        self.bus = LocalBus()
        nowhere: Any = None
        self.ledger = Ledger(nowhere, self.bus, History(nowhere, 10, 1000), "gateway")
        self.metrics = Metrics()
        self.hub = Hub(self.ledger, self.bus, self.metrics, SessionSettings(**settings), lambda _: {"a": True})
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
async def house(**settings: Any) -> AsyncIterator[House]:
    """Serve for a test, which fails if it takes longer than a machine at its worst would need."""
    made = House(**settings)
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
        await runner.cleanup()
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


async def close_code(reader: asyncio.StreamReader) -> int:
    """Read until the gateway closes; the code that it gave."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            data += chunk
            place = 0
            while len(data) - place >= 4:
                size, start = data[place + 1], place + 2
                if size == 126:
                    size, start = int.from_bytes(data[place + 2 : place + 4], "big"), place + 4
                if len(data) < start + size:
                    break
                if data[place] & 0xF == 8:
                    return int.from_bytes(data[start : start + 2], "big")
                place = start + size
            data = data[place:]
    raise AssertionError("closed without a code")


BOMB = zlib.compressobj(9, zlib.DEFLATED, -15)
DEFLATED = BOMB.compress(bytes(10_000_000)) + BOMB.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("flood", "code"),
    [
        pytest.param(masked(9) * 100_000, 1008, id="pings"),
        pytest.param(masked(10) * 100_000, 1008, id="pongs"),
        pytest.param(masked(1) * 100_000, 1008, id="empty texts"),
        pytest.param(masked(9, bytes(125)) * 5_000, 1008, id="full pings"),
        pytest.param(masked(1, b"x", fin=False) + masked(0, fin=False) * 100_000, 1008, id="empty fragments"),
        pytest.param(masked(2, bytes(10_000)) * 100, 1008, id="many bytes"),
        pytest.param(masked(1, b'{"type":"feature_flags","data":{}}'.ljust(20_000)), 1009, id="a large first message"),
        pytest.param(masked(1, b"[" * 15_000) * 10, 1008, id="deep first messages"),
        pytest.param((masked(1, bytes(9_000), fin=False) + masked(0, bytes(9_000))), 1009, id="large in fragments"),
        pytest.param(masked(1, DEFLATED, rsv1=True), 1002, id="a bomb that nobody asked for"),
        pytest.param(masked(1, bytes(60_000)), 1009, id="a large text"),
    ],
)
async def test_who_sends_too_much_is_closed(flood: bytes, code: int) -> None:
    """Counted as it comes, before it is parsed; another socket of the same tenant goes on."""
    async with house() as made:
        good = await made.listen()
        reader, writer = await made.raw()
        writer.write(flood)
        assert await close_code(reader) == code
        await made.until(lambda: len(made.hub) == 1)
        made.publish("s", Kind.LIFECYCLE, b"go on")
        assert (await good.receive()).data == b"go on"
        writer.close()


async def test_all_sockets_of_a_tenant_have_one_budget() -> None:
    """Each sends no more than one may; another tenant's sockets are not concerned."""
    async with house(receive_burst=4096, receive_rate=1024) as made:
        other = await made.listen(tenant="other")
        ended = []
        for _ in range(40):
            reader, writer = await made.raw()
            writer.write(masked(1, bytes(3000)))
            ended.append((reader, writer))
        # 16 times as much as one may send, and some, for the time goes on.
        await made.until(lambda: len(made.hub) <= 24)
        await other.ping()
        assert (await other.receive()).type is aiohttp.WSMsgType.PONG
        for _, writer in ended:
            writer.close()


async def test_a_ping_now_and_then_is_answered() -> None:
    async with house() as made:
        good = await made.listen()
        for n in range(200):
            await good.ping(b"%d" % n)
            answer = await good.receive()
            assert (answer.type, answer.data) == (aiohttp.WSMsgType.PONG, b"%d" % n)


PICTURE = bytes(60_000)


async def test_sockets_that_do_not_read_hold_no_more_than_their_tenant_may() -> None:
    """What may be left out is; then those that hold most are closed. One that reads hears everything."""
    most = 2_000_000
    async with house(tenant_buffer=most) as made:
        good = await made.listen("good")
        silent = [await made.raw(f"s{n}") for n in range(10)]
        for step in range(600):
            for n in range(10):
                made.publish(f"s{n}", Kind.PREVIEW, PICTURE + bytes([n]))
            if step > 200:
                made.publish(f"s{step % 10}", Kind.LIFECYCLE, PICTURE + bytes([10]))
            if step % 50 == 0:
                made.publish("good", Kind.LIFECYCLE, b"go on")
                assert (await good.receive()).data == b"go on"
            await asyncio.sleep(0)
            # Beside it, the one frame of each socket that is on its way into its transport.
            assert made.hub.buffered <= most + len(PICTURE) + 65_536
        assert made.metrics.slow_closed._value.get() > 0
        for _, writer in silent:
            writer.transport.abort()
        await made.until(lambda: len(made.hub) == 1 and made.hub.buffered == 0)


async def test_what_all_sockets_of_a_session_hold_counts_once() -> None:
    """Nobody is closed: there is one picture in memory, however many wait for it."""
    async with house(tenant_buffer=2_000_000) as made:
        silent = [await made.raw() for _ in range(20)]
        for _ in range(20):
            made.publish("s", Kind.LIFECYCLE, PICTURE + b"x")
        assert made.hub.buffered <= 20 * len(PICTURE) + 20 + 65_536
        for _, writer in silent:
            writer.transport.abort()


async def test_a_burst_of_changes_is_one_status_and_the_last_one_always_comes() -> None:
    async with house() as made:
        listening = [await made.listen(f"s{n}") for n in range(3)]
        for _ in range(50):
            made.bus.publish(status_topic("t"), None)
        # The second burst comes within the pause after the first one's.
        for socket in listening:
            assert json.loads((await socket.receive()).data)["type"] == "status"
        for _ in range(50):
            made.bus.publish(status_topic("t"), None)
        for n, socket in enumerate(listening):
            assert json.loads((await socket.receive()).data)["type"] == "status"
            made.publish(f"s{n}", Kind.LIFECYCLE, b"end")
            assert (await socket.receive()).data == b"end"


async def test_a_socket_that_goes_takes_its_status_along() -> None:
    async with house() as made:
        socket = await made.listen()
        made.bus.publish(status_topic("t"), None)
        await socket.close()
        await made.until(lambda: len(made.hub) == 0)
        made.bus.publish(status_topic("t"), None)
