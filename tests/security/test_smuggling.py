"""Requests that two servers might read differently, over raw sockets, and what a backend saw of them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.security.recorder import Heard, Recorder, passes_on, talk
from tests.support.lab import GatewayProcess, Lab

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"0\r\n\r\n"
KEY = "key-that-stays-here-1"


def post(*headers: bytes, version: bytes = b"1.1", body: bytes = b"") -> bytes:
    """A POST that is passed on."""
    return b"POST /anything HTTP/%b\r\n%b\r\n%b" % (
        version,
        b"".join(h + b"\r\n" for h in (b"Host: x", *headers)),
        body,
    )


def get(*headers: bytes, target: bytes = b"/anything", method: bytes = b"GET") -> bytes:
    """A GET that is passed on."""
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, b"".join(h + b"\r\n" for h in headers))


def sized(length: bytes, body: bytes = b"abcd" + HIDDEN) -> bytes:
    """A POST with a Content-Length line."""
    return post(length, body=body)


def coded(coding: bytes, body: bytes = CHUNKED + HIDDEN, *more: bytes, version: bytes = b"1.1") -> bytes:
    """A POST with a Transfer-Encoding line."""
    return post(coding, *more, body=body, version=version)


def chunks(body: bytes) -> bytes:
    """A POST in chunks."""
    return coded(b"Transfer-Encoding: chunked", body + HIDDEN)


REFUSED: dict[str, bytes] = {
    "CL before TE": coded(b"Content-Length: 4", CHUNKED + HIDDEN, b"Transfer-Encoding: chunked"),
    "TE before CL": coded(b"Transfer-Encoding: chunked", CHUNKED + HIDDEN, b"Content-Length: 4"),
    "two CL": post(b"Content-Length: 4", b"Content-Length: 40", body=b"abcd" + HIDDEN),
    "two CL that agree": post(b"Content-Length: 4", b"Content-Length: 4", body=b"abcd" + HIDDEN),
    "CL list": sized(b"Content-Length: 4, 4"),
    "CL +": sized(b"Content-Length: +4"),
    "CL -": sized(b"Content-Length: -4"),
    "CL hex": sized(b"Content-Length: 0x4"),
    "CL underscore": sized(b"Content-Length: 1_0"),
    "CL of two numbers": sized(b"Content-Length: 4 4"),
    "CL other digits": sized("Content-Length: ４".encode()),
    "CL without end": sized(b"Content-Length: 99999999999999999999999"),
    "CL empty": sized(b"Content-Length: "),
    "blank before colon": sized(b"Content-Length : 4"),
    "blank before colon of TE": coded(b"Transfer-Encoding : chunked", CHUNKED, b"Content-Length: 5"),
    "TE xchunked": coded(b"Transfer-Encoding: xchunked"),
    "TE identity": coded(b"Transfer-Encoding: identity", b"abcd" + HIDDEN, b"Content-Length: 4"),
    "TE chunked, then identity": coded(b"Transfer-Encoding: chunked", CHUNKED, b"Transfer-Encoding: identity"),
    "TE chunked, identity": coded(b"Transfer-Encoding: chunked, identity"),
    "TE gzip, chunked": coded(b"Transfer-Encoding: gzip, chunked"),
    "TE chunked twice": coded(b"Transfer-Encoding: chunked, chunked"),
    "TE vertical tab": coded(b"Transfer-Encoding: \x0bchunked"),
    "TE quoted": coded(b'Transfer-Encoding: "chunked"'),
    "TE folded": coded(b"Transfer-Encoding:\r\n chunked"),
    "TE in HTTP/1.0": coded(b"Transfer-Encoding: chunked", CHUNKED, b"Connection: keep-alive", version=b"1.0"),
    "folded": get(b"Host: x", b"X-A: b\r\n c"),
    "first line folded": b"GET /anything HTTP/1.1\r\n Host: x\r\n\r\n",
    "bare LF": b"GET /anything HTTP/1.1\nHost: x\n\n",
    "bare LF in headers": b"GET /anything HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n",
    "bare LF as end": b"GET /anything HTTP/1.1\r\nHost: x\r\n\n" + HIDDEN,
    "bare CR": get(b"Host: x", b"X-A: b\rX-B: c"),
    "NUL in a value": get(b"Host: x", b"X-A: b\0c"),
    "NUL in the path": get(b"Host: x", target=b"/any\0thing"),
    "blank in a name": get(b"Host: x", b"X A: b"),
    "no colon": get(b"Host: x", b"Garbage"),
    "no name": get(b"Host: x", b": b"),
    "blank in the path": get(b"Host: x", target=b"/any thing"),
    "tabs in the line": b"GET\t/anything\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": get(),
    "two hosts": get(b"Host: x", b"Host: y"),
    "no host's name": get(b"Host: x/y@z"),
    "another host in the target": get(b"Host: x", target=b"http://evil/anything"),
    "authority as target": get(b"Host: x", target=b"x:80"),
    "asterisk as target": get(b"Host: x", target=b"*"),
    "HTTP/0.9": b"GET /anything\r\n\r\n",
    "HTTP/1.2": b"GET /anything HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2.0": b"GET /anything HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/1.1": b"GET /anything http/1.1\r\nHost: x\r\n\r\n",
    "long line": get(b"Host: x", target=b"/" + b"a" * 40_000),
    "long header": get(b"Host: x", b"X-A: " + b"a" * 40_000),
    "many headers": get(b"Host: x", *(b"X-%d: a" % n for n in range(300))),
    "no such method": get(b"Host: x", method=b"GRT"),
    "CONNECT": get(b"Host: x", target=b"x:80", method=b"CONNECT") + HIDDEN,
    "TRACE": get(b"Host: x", b"X-API-Key: " + KEY.encode(), method=b"TRACE"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "chunk of too many bytes": chunks(b"fffffffffffffffff\r\nabcd\r\n" + CHUNKED),
    "chunk of fewer than none": chunks(b"-4\r\nabcd\r\n" + CHUNKED),
    "chunk 0x": chunks(b"0x4\r\nabcd\r\n" + CHUNKED),
    "chunk with a blank": chunks(b"4 \r\nabcd\r\n" + CHUNKED),
    "chunk with bare LF": chunks(b"4\nabcd\n0\n\n"),
    "chunk longer than it says": chunks(b"4\r\nabcdXX" + CHUNKED),
    "trailers that frame": chunks(b"4\r\nabcd\r\n0\r\nContent-Length: 5\r\n\r\n"),
}
# What is read in one way alone: as many answers, and as many requests to the backend, with these bodies.
TAKEN: dict[str, tuple[bytes, int, list[bytes]]] = {
    "one": (get(b"Host: x"), 1, [b""]),
    "with a body": (sized(b"Content-Length: 4", b"abcd"), 1, [b"abcd"]),
    "a body that looks like a request": (sized(b"Content-Length: %d" % len(HIDDEN), HIDDEN), 1, [HIDDEN]),
    "TE tab": (coded(b"Transfer-Encoding:\tchunked", b"4\r\nabcd\r\n" + CHUNKED), 1, [b"abcd"]),
    "TE in capitals": (coded(b"Transfer-Encoding: CHUNKED", b"4\r\nabcd\r\n" + CHUNKED), 1, [b"abcd"]),
    "another name": (post(b"Transfer_Encoding: chunked", b"Content-Length: 5", body=CHUNKED), 1, [CHUNKED]),
    "chunk extensions": (coded(b"Transfer-Encoding: chunked", b"4;a=b\r\nabcd\r\n" + CHUNKED), 1, [b"abcd"]),
    "trailers": (coded(b"Transfer-Encoding: chunked", b"4\r\nabcd\r\n0\r\nX-A: b\r\n\r\n"), 1, [b"abcd"]),
    "pipelined": (get(b"Host: x") + sized(b"Content-Length: 4", b"abcd") + get(b"Host: x"), 3, [b"", b"abcd", b""]),
    "HTTP/1.0 that is kept": (b"GET /anything HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2, 2, [b"", b""]),
    "absolute": (get(b"Host: x", target=b"http://x/anything"), 1, [b""]),
    "empty lines before": (b"\r\n\r\n" + get(b"Host: x"), 1, [b""]),
    "upgrade to websocket elsewhere": (
        get(b"Host: x", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13") + get(b"Host: x"),
        2,
        [b"", b""],
    ),
    "upgrade to HTTP/2": (
        get(b"Host: x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAA"),
        1,
        [b""],
    ),
    "upgrade with a body": (
        post(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 4", body=b"abcd") + get(b"Host: x"),
        2,
        [b"abcd", b""],
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A gateway, and the backend that keeps what it is sent."""

    gateway: GatewayProcess
    backend: Recorder


@pytest.fixture
async def pair(lab: Lab) -> AsyncIterator[Pair]:
    """Both, started."""
    backend = Recorder()
    await backend.start()
    gateway = await lab.gateway(backend.url, up=0, probe__interval=30, server__send_timeout=2)
    await passes_on(lab, gateway.url)
    backend.seen.clear()
    yield Pair(gateway, backend)
    await gateway.stop()
    await backend.close()


async def talks(pair: Pair, *paths: str) -> list[Heard]:
    """Ask for each of these, all at once."""
    asked = [get(b"Host: x", target=path.encode()) for path in paths]
    return await asyncio.gather(*(talk(pair.gateway.port, raw, silence=2) for raw in asked))


async def test_what_can_be_read_in_two_ways_reaches_no_backend(pair: Pair) -> None:
    """Each is refused with an error or without an answer, its connection is closed, and the backend hears of none."""
    said = []
    for name, raw in REFUSED.items():
        heard = await talk(pair.gateway.port, raw)
        statuses = heard.statuses
        if not heard.closed or len(statuses) > 1 or (statuses and statuses[0] not in (400, 405, 414, 431, 505)):
            said.append((name, statuses, heard.closed))
    assert said == []
    # A chunk that breaks off the body was begun to be passed on: its request must not have ended well.
    assert [
        seen for seen in pair.backend.asked if b"chunk" not in seen.headers.get("transfer-encoding", "").encode()
    ] == []
    assert b"hidden" not in bytes(pair.backend.raw)
    log = pair.gateway.log.read_text()
    assert KEY not in log
    assert "Traceback" not in log


async def test_what_can_be_read_in_one_way_alone_is_read_so(pair: Pair) -> None:
    said = []
    for name, (raw, answers, bodies) in TAKEN.items():
        pair.backend.seen.clear()
        heard = await talk(pair.gateway.port, raw)
        seen = [seen.body for seen in pair.backend.asked]
        if heard.statuses != [200] * answers or seen != bodies:
            said.append((name, heard.statuses, seen))
    assert said == []


async def test_what_is_between_neighbours_goes_no_further(pair: Pair) -> None:
    """Hop-by-hop headers, those that Connection names, and other spellings of those that frame."""
    sent = {
        "Connection": "X-Between, close, Upgrade, HTTP2-Settings",
        "X-Between": "secret",
        "Keep-Alive": "timeout=5",
        "Proxy-Connection": "keep-alive",
        "Proxy-Authorization": "Basic secret",
        "TE": "trailers",
        "Trailer": "X-T",
        "Upgrade": "h2c",
        "HTTP2-Settings": "secret",
        "Transfer_Encoding": "chunked",
        "Content_Length": "99",
        "X_API_Key": "secret",
        "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "X-Kept": "yes",
    }
    await talk(pair.gateway.port, get(b"Host: x", *(f"{k}: {v}".encode() for k, v in sent.items())))
    (seen,) = pair.backend.asked
    assert {name for name in seen.headers if name in {k.lower() for k in sent}} <= {"x-kept", "connection"}
    assert "secret" not in str(seen.headers)
    assert seen.headers["x-kept"] == "yes"
    assert seen.headers["host"] == pair.backend.url.removeprefix("http://")


async def test_what_a_backend_says_of_itself_goes_no_further(pair: Pair) -> None:
    host = pair.backend.url.removeprefix("http://")
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: X-B\r\nX-B: secret\r\n"
        f"Keep-Alive: timeout=5\r\nServer: secret\r\nX-Powered-By: secret\r\nVia: 1.1 secret\r\nAlt-Svc: h2=secret\r\n"
        f"Set-Cookie: a=secret\r\nWWW-Authenticate: Basic realm=secret\r\nAccess-Control-Allow-Origin: *\r\n"
        f"Content-Location: http://{host}/\r\nRefresh: 0; url=http://{host}/\r\n"
        f"Strict-Transport-Security: max-age=1\r\nClear-Site-Data: *\r\n"
        f"X-Accel-Redirect: /secret\r\nX-Accel-Expires: 3600\r\nX-Sendfile: /secret\r\n"
        f"X_Accel_Redirect: /secret\r\nX-Reproxy-File: /secret\r\nCDN-Cache-Control: max-age=1\r\n"
        f"Service-Worker-Allowed: /secret\r\nX-Accel-Buffering: no\r\nX-Kept: yes\r\n\r\nok"
    )
    pair.backend.answers["/page"] = head.encode()
    heard = await talk(pair.gateway.port, get(b"Host: x", target=b"/page"))
    text = heard.raw.decode().lower()
    assert "secret" not in text
    assert host not in text
    for gone in ("set-cookie", "www-auth", "access-control", "keep-alive", "refresh", "strict-transport", "clear-site",
                 "x-accel-redirect", "x-accel-expires", "x-sendfile", "cdn-cache"):  # fmt: skip
        assert gone not in text, gone
    assert "x-kept: yes" in text
    assert "x-accel-buffering: no" in text
    assert "server: comfyui-gateway\r\n" in text
    locations = {
        "/r1": (f"http://{host}/there?a=1", "/there?a=1"),
        "/r2": ("/there", "/there"),
        "/r3": ("there/", "/there/"),
        "/r4": (f"//{host}/there", "/there"),
        "/r5": ("https://github.com/a", "https://github.com/a"),
        "/r6": ("http://10.0.0.5:8188/a", None),
        "/r7": ("http://gpu-7:8188/a", None),
        "/r8": ("http://127.0.0.1:1/a", None),
        "/r9": ("javascript:alert(1)", None),
        "/r10": ("http://[", None),
    }
    for name, (location, _) in locations.items():
        raw = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        pair.backend.answers[name] = raw.encode()
    for (name, (_, shown)), heard in zip(locations.items(), await talks(pair, *locations), strict=True):
        lines = [line for line in heard.raw.decode().split("\r\n") if line.lower().startswith("location:")]
        assert lines == ([] if shown is None else [f"Location: {shown}"]), name
        assert heard.statuses == [302]
    assert all(seen.path != "/there" for seen in pair.backend.seen)


async def test_an_answer_that_is_none_tells_nothing_of_its_backend(pair: Pair) -> None:
    host = pair.backend.url.removeprefix("http://")
    pair.backend.answers |= {
        "/a1": b"nonsense\r\n\r\n",
        "/a2": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "/a3": b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n",
        "/a4": b"HTTP/1.1 999999 OK\r\n\r\n",
    }
    for heard in await talks(pair, *pair.backend.answers):
        assert heard.statuses == [502], heard
        assert host not in heard.raw.decode()
        assert host.partition(":")[0] not in heard.raw.decode()


async def test_expectations(pair: Pair) -> None:
    heard = await talk(pair.gateway.port, post(b"Expect: 100-continue", b"Content-Length: 2", body=b"{}"))
    assert heard.statuses == [100, 200]
    (seen,) = pair.backend.asked
    assert seen.body == b"{}"
    assert "expect" not in seen.headers
    heard = await talk(pair.gateway.port, post(b"Expect: something-else", b"Content-Length: 2", body=b"{}"))
    assert heard.statuses == [417]


def frame(opcode: int, payload: bytes, *, length: int | None = None) -> bytes:
    """A client's WebSocket frame, masked with zeros (RFC 6455, section 5.2)."""
    size = len(payload) if length is None else length
    head = (
        struct.pack(">BB", 0x80 | opcode, 0x80 | size) if size < 126 else struct.pack(">BBQ", 0x80 | opcode, 0xFF, size)
    )
    return head + bytes(4) + payload


async def flood(port: int, hello: bytes, *, is_read: bool) -> None:
    """Send pings for as long as that is borne."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(hello)
    await reader.readuntil(b"\r\n\r\n")
    if not is_read:
        writer.transport.pause_reading()

    async def pings() -> None:
        while True:
            writer.write(frame(9, b"x" * 100) * 1000)
            await writer.drain()

    async def pongs() -> None:
        while is_read and await reader.read(2**16):
            pass

    reading = asyncio.create_task(pongs())
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(pings(), 60)
    await asyncio.gather(reading, return_exceptions=True)
    writer.close()


async def test_sockets_take_what_clients_send_and_no_more(pair: Pair) -> None:
    """A message that is too large, frames that are none, and pings without end, whose pongs nobody reads."""
    hello = get(
        b"Host: x", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Extensions: permessage-deflate", target=b"/ws",
    )  # fmt: skip
    heard = await talk(pair.gateway.port, hello)
    assert heard.statuses == [101]
    assert b"extensions" not in heard.raw.lower()
    for sent in (
        frame(1, b"", length=2**40),
        frame(1, b"x" * (2**20 + 1)),
        b"\xf1\x80" + bytes(4),
        frame(9, b"", length=200),
        frame(1, b"\xff\xfe"),
    ):
        assert (await talk(pair.gateway.port, hello + sent, silence=3)).closed, sent[:12]
    # As documented (docs/compatibility.md): what is not masked is taken, and as what it is.
    closing = frame(8, b"\x03\xe8")
    heard = await talk(pair.gateway.port, hello + b"\x89\x01p" + closing, silence=10)
    assert b"\x8a\x01p" in heard.raw
    assert heard.raw.endswith(b"\x88\x02\x03\xe8")
    for is_read in (True, False):
        await flood(pair.gateway.port, hello, is_read=is_read)
    assert (await talk(pair.gateway.port, get(b"Host: x", target=b"/queue"))).statuses == [200]
