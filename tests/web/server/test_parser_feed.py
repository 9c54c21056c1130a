"""Which bytes of a connection are parsed, and when: bounds of heads, and what waits until a request is admitted."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import ServerSettings, Settings
from gateway.telemetry.metrics import Metrics
from gateway.web.server.parser_feed import INTAKES, MAX_AHEAD, MAX_FIELD, MAX_HEAD, MAX_TARGET, Head, HeadTooLong
from gateway.web.server.server import Server
from tests.support.lab import until

HEAD = b"GET /%b HTTP/1.1\r\nHost: x\r\n%b\r\n"


def header(size: int) -> bytes:
    """A header line of so many bytes, its end not counted."""
    return b"X-A: " + b"a" * (size - 5) + b"\r\n"


def take(head: Head, data: bytes, cuts: list[int]) -> tuple[int | None, int]:
    """Where the head ends in all that is given in pieces, and the status of the refusal (0: none)."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    try:
        for start, stop in itertools.pairwise(edges):
            if start < stop and (end := head.take(data[start:stop])) is not None:
                return start + end, 0
    except HeadTooLong as error:
        return None, error.status
    return None, 0


@given(
    st.lists(st.integers(0, 2**20), max_size=8), st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"\r\n" * 3])
)
def test_a_head_ends_where_it_does_however_it_comes(cuts: list[int], body: bytes, before: bytes) -> None:
    head = before + HEAD % (b"a", b"X-B: c\r\n")
    assert take(Head(), head + body, cuts) == (len(head), 0)


@given(st.lists(st.integers(0, 2**20), max_size=8))
def test_a_head_has_bounds_however_it_comes(cuts: list[int]) -> None:
    within = [
        HEAD % (b"a" * (MAX_TARGET - 1), b""),
        HEAD % (b"a", header(MAX_FIELD)),
        HEAD % (b"a", header(MAX_HEAD // 3) * 2),
    ]
    assert [take(Head(), data, cuts) for data in within] == [(len(data), 0) for data in within]
    beyond = [
        (HEAD % (b"a" * (MAX_TARGET + 100), b""), 414),
        (HEAD % (b"a", header(MAX_FIELD + 2)), 431),
        (HEAD % (b"a", header(MAX_HEAD // 3) * 3), 431),
        # Without an end.
        (b"a" * (MAX_TARGET + 100), 414),
        (b"GET / HTTP/1.1\r\n" + header(100) * 400, 431),
    ]
    assert [take(Head(), data, cuts)[1] for data, _ in beyond] == [status for _, status in beyond]


def test_the_rest_of_a_head_is_no_target() -> None:
    # A head that came behind a body in one piece with it was begun by the parser already.
    rest = b"a" * (MAX_TARGET + 100) + b"\r\n\r\n"
    assert take(Head(is_begun=True), rest, []) == (len(rest), 0)
    assert take(Head(is_begun=True), b"a" * (MAX_FIELD + 2), [])[1] == 431


@dataclass(slots=True)
class Echo:
    """A server in front of which connections are as before a gateway; it answers with the digest of a body.

    `gate` is set while requests are admitted. `seen` is how much of each body was parsed before that.
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[int] = field(default_factory=list)
    waiting: int = 0
    app: web.Application = field(default_factory=web.Application)
    serving: Server | None = None

    async def start(self) -> None:
        """Listen."""
        self.app[INTAKES] = {}
        self.app.router.add_route("*", "/{path:.*}", self.answer)
        self.serving = Server(self.app, Settings(server=ServerSettings(port=0, drain_timeout=1)), Metrics())
        await self.serving.start()

    async def answer(self, request: web.Request) -> web.Response:
        """What a handler does, the gate included."""
        intake = self.app[INTAKES][request.protocol]
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        self.seen.append(request.content.total_raw_bytes if request.can_read_body else 0)
        if request.path == "/refused":
            return web.Response(status=401)
        intake.open()
        return web.Response(text=hashlib.sha256(await request.read()).hexdigest())

    async def talk(self, pieces: list[bytes], answers: int) -> list[bytes]:
        """Send these pieces one after the other; what was answered."""
        assert self.serving is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.serving.port)

        async def send() -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                # Another piece for the other side, too.
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        heard = []
        async with asyncio.timeout(20):
            for _ in range(answers):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                heard.append(head[9:12] + b" " + await reader.readexactly(length))
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
        return heard


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """One that admits what comes."""
    echo = Echo()
    echo.gate.set()
    await echo.start()
    yield echo
    assert echo.serving is not None
    await echo.serving.close()


def chunked(body: bytes, size: int, path: bytes = b"a") -> bytes:
    """A POST whose body comes in chunks of a size."""
    chunks = (body[n : n + size] for n in range(0, len(body), size))
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST /%b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % (path, framed)


def sized(body: bytes, path: bytes = b"a", *headers: bytes) -> bytes:
    """A POST whose body has a length."""
    more = b"".join(header + b"\r\n" for header in headers)
    return b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), more, body)


async def test_bodies_come_whole_in_whatever_pieces(echo: Echo) -> None:
    """Requests in a row, of all sizes, in chunks or not, cut anywhere: each is answered for its own body."""
    for seed in range(25):
        rng = random.Random(seed)
        raw, expected = b"", []
        for _ in range(rng.randint(1, 6)):
            body = rng.randbytes(rng.choice((0, 1, 100, 3000, 20_000, 300_000)))
            body = rng.choice((body, b"\n" * len(body), b"\r\n\r\n" * (len(body) // 4)))
            raw += rng.choice((b"", b"\r\n"))
            if rng.random() < 0.3:
                raw, body = raw + HEAD % (b"a", header(rng.randint(20, 9000))), b""
            elif rng.random() < 0.5:
                raw += sized(body)
            else:
                raw += chunked(body, max(rng.choice((1, 7, 1000)), len(body) // 5000))
            expected.append(b"200 " + hashlib.sha256(body).hexdigest().encode())
        cuts = sorted(rng.randrange(len(raw)) for _ in range(rng.choice((0, 1, 5, 30))))
        pieces = [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        assert await echo.talk(pieces, len(expected)) == expected, seed


@pytest.mark.parametrize("before", [b"", HEAD % (b"a", b"")], ids=["alone", "behind another request"])
async def test_the_parser_gets_no_body_before_the_gate_has_looked(echo: Echo, before: bytes) -> None:
    echo.gate.clear()
    body = b"a" * 50_000
    answers = 1 + bool(before)
    talking = asyncio.create_task(echo.talk([before + chunked(body, 1)], answers))

    async def is_held() -> bool:
        return any(intake.held for intake in echo.app[INTAKES].values())

    await until(is_held)
    echo.gate.set()
    assert (await talking)[-1] == b"200 " + hashlib.sha256(body).hexdigest().encode()
    assert max(echo.seen) <= MAX_AHEAD


async def flood(port: int, head: bytes, piece: bytes, times: int) -> int:
    """Send a head, and then pieces until the other side closes: how many of them it took."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    taken = 0
    try:
        async with asyncio.timeout(20):
            while taken < times:
                writer.write(piece)
                await writer.drain()
                taken += 1
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return taken


async def test_a_body_that_is_refused_is_not_read(echo: Echo) -> None:
    """A short rest is, because the connection goes on; of a long one hardly more than the kernel holds."""
    goes_on = sized(b"a" * 60_000, b"refused") + sized(b"", b"a")
    assert [heard[:3] for heard in await echo.talk([goes_on], 2)] == [b"401", b"200"]
    piece = b"%x\r\n%b\r\n" % (10**6, b"a" * 10**6)
    assert echo.serving is not None
    head = b"POST /refused HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n"
    heads = [head % framing for framing in (b"Transfer-Encoding: chunked", b"Content-Length: 90000000")]
    assert max(await asyncio.gather(*(flood(echo.serving.port, head, piece, 80) for head in heads))) < 40
    assert max(echo.seen) <= 2**18


async def test_a_client_that_went_after_its_answer_is_no_fault(echo: Echo) -> None:
    """What it had sent behind its request is no head, and there is nobody to be told."""
    assert echo.serving is not None
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))

    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD % (b"refused", b"") + b"\x89\x80aaaa" * 33_000)
            return client.recv(2**16)[:12]

    for _ in range(20):
        assert await asyncio.to_thread(ask, echo.serving.port) == b"HTTP/1.1 401"

    async def are_gone() -> bool:
        return not echo.app[INTAKES]

    await until(are_gone, what="the end of the connections")
    assert faults == []
