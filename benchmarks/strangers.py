"""What somebody without a key may send: each request may cost a millisecond of CPU, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from benchmarks.attacks import Attack, Case, answer_of

TIMES = 400
# As much as is taken of a target, and of one header.
TARGET, FIELD = 8_100, 16_000
MEGABYTE = b"a" * 1_000_000


def get(target: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    """A request without a body."""
    lines = b"".join(header + b"\r\n" for header in (b"Host: x", *headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, lines)


def post(target: bytes, body: bytes, *headers: bytes, method: bytes = b"POST") -> bytes:
    """A request with a body whose length is given."""
    return get(target, b"Content-Length: %d" % len(body), *headers, method=method) + body


def chunked(target: bytes, chunk: bytes, times: int, *headers: bytes, method: bytes = b"POST") -> bytes:
    """A request with a body in chunks, without its end."""
    return (
        get(target, b"Transfer-Encoding: chunked", *headers, method=method)
        + b"%x\r\n%b\r\n"
        % (
            len(chunk),
            chunk,
        )
        * times
    )


def each(name: str, make: Callable[[int], bytes], times: int = TIMES) -> Case:
    """A case that sends `times` different requests, each on a connection of its own."""

    async def attack(attack: Attack) -> int:
        return await attack.each([make(n) for n in range(times)])

    return Case(f"without a key, {name}", attack, bound=1.0, is_each=True)


WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
FORM = b"Content-Type: application/x-www-form-urlencoded"
PREFLIGHT = (b"Access-Control-Request-Method: GET", b"Origin: http://x")
COOKIE = b"Cookie: comfyui_gateway_key"


def filled(start: bytes, piece: bytes, size: int) -> bytes:
    """A text of about so many bytes that begins with one and is filled up with another."""
    return start + piece * ((size - len(start)) // len(piece))


async def _flood(attack: Attack) -> int:
    """Bodies without end, each at most 100 MB, as fast as the gateway takes them."""

    async def one() -> None:
        with contextlib.suppress(ConnectionError):
            _, writer = await asyncio.open_connection("127.0.0.1", attack.port)
            writer.write(get(b"/manifest.json", b"Transfer-Encoding: chunked"))
            for _ in range(100):
                writer.write(b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE))
                async with asyncio.timeout(5):
                    await writer.drain()
            writer.close()

    room = asyncio.Semaphore(8)

    async def in_turn() -> None:
        async with room:
            await one()

    count = 200
    await asyncio.gather(*(in_turn() for _ in range(count)), return_exceptions=True)
    return count


async def _stay(attack: Attack) -> int:
    """Heads that never end, as much as is taken of each."""
    head = get(b"/queue").removesuffix(b"\r\n") + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 8000) for n in range(120))
    pairs = [await asyncio.open_connection("127.0.0.1", attack.port) for _ in range(200)]
    for _, writer in pairs:
        writer.write(head)
    await asyncio.sleep(2)
    for _, writer in pairs:
        writer.close()
    return len(pairs)


async def _pipelined(attack: Attack) -> int:
    """Requests in one piece, far more than are answered at once."""
    count, connections = 400, 10

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
        writer.write(get(b"/queue") * count)
        for _ in range(count):
            await answer_of(reader)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return count * connections


async def _idle(attack: Attack) -> int:
    """Connections that say nothing."""
    pairs = [await asyncio.open_connection("127.0.0.1", attack.port) for _ in range(1000)]
    await asyncio.sleep(1)
    for _, writer in pairs:
        writer.close()
    return len(pairs)


async def _refusals(attack: Attack) -> int:
    """Refusals of all kinds, so many that what they leave behind is collected."""
    kinds = (
        get(b"/queue"),
        get(b"/queue", method=b"PROPFIND"),
        get(b"/queue", b"X-API-Key: a", b"X-API-Key: b"),
        get(b"/x" * 1000),
        get(b"/", b"Accept: text/html"),
        get(b"/queue", method=b"M"),
        chunked(b"/healthz", b"a", 2, method=b"GET"),
        post(b"/gateway/signin", b"key=wrong", FORM),
        post(b"/gateway/signin", b"\xff", FORM),
        get(b"/manifest.json"),
    )
    return await attack.each([kinds[n % len(kinds)] for n in range(10_000)])


async def _paths(attack: Attack) -> int:
    """As many different paths as would be felt if each were kept."""
    return await attack.each([get(filled(b"/%d" % n, b"/" + b"a" * 39, TARGET)) for n in range(20_000)])


async def _chunks(attack: Attack) -> int:
    """Bodies in chunks of one byte, from a user."""
    request = chunked(b"/prompt", b"a", 400_000, b"X-API-Key: " + attack.keys["anna"].encode()) + b"0\r\n\r\n"
    return await attack.each([request] * 8)


def _proxied(name: str, make: Callable[[int], bytes]) -> Case:
    """A case in which the gateway believes what its caller says of others."""
    return replace(each(name, make), settings={"SERVER__TRUSTED_PROXIES": "127.0.0.0/8"})


# Paths and queries at their bounds, then past them.
TARGETS = (
    each("a request", lambda n: get(b"/queue")),
    each("the sign-in page", lambda n: get(b"/gateway/signin?next=/%d" % n)),
    each("/metrics", lambda n: get(b"/metrics")),
    each("a path of 200 parts", lambda n: get(filled(b"/%d" % n, b"/" + b"x" * 40, TARGET))),
    each("a short path of slashes", lambda n: get(filled(b"/%d" % n, b"/", 200))),
    each("a path of %2F", lambda n: get(filled(b"/%d" % n, b"%2Fx", TARGET))),
    each("a path of %252F", lambda n: get(filled(b"/%d" % n, b"%252525252F", TARGET))),
    each("a path of no UTF-8", lambda n: get(filled(b"/%d" % n, b"%C3%28", TARGET))),
    each("a path of raw bytes", lambda n: get(filled(b"/%d" % n, b"\xc3\xa9", TARGET))),
    each("a path of %2F under /api", lambda n: get(filled(b"/api", b"%2Fapi", TARGET) + b"%d" % n)),
    each("a path that is POSTed to", lambda n: get(filled(b"/%d" % n, b"%2Fx", TARGET), method=b"POST")),
    each("an absolute URL", lambda n: get(filled(b"http://x/%d" % n, b"%2Fx", TARGET))),
    each("a name like the manifest's", lambda n: get(filled(b"/manifest%d" % n, b".", TARGET))),
    each("a path that a page asks for", lambda n: get(filled(b"/%d" % n, b"\xc3\xa9", TARGET), b"Accept: text/html")),
    each("a query of 1,000 names", lambda n: get(filled(b"/queue?%d" % n, b"&abcde%41", TARGET))),
    each("a query of 1,000 tokens", lambda n: get(filled(b"/queue?token=%d" % n, b"&token=aa", TARGET))),
    each("a query of %25", lambda n: get(filled(b"/queue?token=%d" % n, b"%25", TARGET))),
    each("a long token", lambda n: get(filled(b"/queue?token=%d" % n, b"a", TARGET))),
    each("a long way back from the sign-in page", lambda n: get(filled(b"/gateway/signin?next=/", b"%26", TARGET))),
    each("a path of 32 KB, many parts", lambda n: get(filled(b"/%d" % n, b"/x", 32_000))),
    each("a path of 8 KB, many parts", lambda n: get(filled(b"/%d" % n, b"/x", TARGET))),
    each("a path of 8 KB, dots", lambda n: get(filled(b"/%d" % n, b"/..", TARGET))),
    each("an absolute URL of many parts", lambda n: get(filled(b"http://x/%d" % n, b"/x", TARGET))),
    each("a query of 4,000 names", lambda n: get(filled(b"/queue?%d" % n, b"&a", TARGET))),
)
HEADERS = (
    each("a wrong key", lambda n: get(b"/queue", b"X-API-Key: wrong-%d" % n)),
    each("a long X-API-Key", lambda n: get(b"/queue", filled(b"X-API-Key: %d" % n, b"\xff", FIELD))),
    each("a hundred X-API-Keys", lambda n: get(b"/queue", *(b"X-API-Key: %d-%d" % (n, i) for i in range(100)))),
    each("long Basic credentials", lambda n: get(b"/queue", b"Authorization: Basic " + b"YWFh" * 4000)),
    each("a long Bearer", lambda n: get(b"/queue", filled(b"Authorization: Bearer %d" % n, b" ", FIELD))),
    each("a long Cookie", lambda n: get(b"/queue", filled(COOKIE + b"=%d" % n, b"; a=b", FIELD))),
    each("a Cookie of quotes", lambda n: get(b"/queue", filled(COOKIE + b'=%d; a="' % n, b"\\1", FIELD))),
    each("a Cookie that is no cookie", lambda n: get(b"/queue", filled(COOKIE, b" ;=", FIELD))),
    each("hundreds of our Cookie", lambda n: get(b"/queue", filled(COOKIE, b";comfyui_gateway_key=a", FIELD))),
    each("a Cookie to sign out", lambda n: get(b"/gateway/signout", filled(COOKIE, b";a=b", FIELD), method=b"POST")),
    each("a long Host", lambda n: get(b"/queue").replace(b"Host: x", filled(b"Host: %d" % n, b"a", FIELD))),
    each("a long Origin", lambda n: get(b"/queue", filled(b"Origin: http://", b"[", FIELD), b"Referer: http://[")),
    each("a long Referer", lambda n: get(b"/queue", filled(b"Referer: http://x/", b"/?", FIELD), b"Cookie: a=b")),
    each("a long Range", lambda n: get(b"/queue", filled(b"Range: bytes=%d-" % n, b",1-2", FIELD))),
    each("120 headers", lambda n: get(b"/queue", *(b"X-%d: a" % i for i in range(120)))),
    each("31 KB of headers", lambda n: get(b"/queue", *(b"X-%d: %b" % (i, b"a" * 250) for i in range(115)))),
    each("900 KB of headers", lambda n: get(b"/queue", *(b"X-%d: %b" % (i, b"a" * 8000) for i in range(110))), 100),
    each("many names in Connection", lambda n: get(b"/manifest.json", filled(b"Connection: x", b",x", FIELD))),
    _proxied(
        "many hops", lambda n: get(b"/queue", filled(b"X-Forwarded-For: 1.2.3.%d" % (n % 99), b",127.0.0.1", FIELD))
    ),
    _proxied("long names from a proxy", lambda n: get(b"/queue", filled(b"X-Forwarded-Host: %d" % n, b"a", FIELD))),
    each("a preflight", lambda n: get(b"/%d" % n, *PREFLIGHT, method=b"OPTIONS")),
    each("a method that is none", lambda n: get(b"/", method=b"M" * 30_000)),
    each("no HTTP", lambda n: b"\x16\x03\x01" + b"\xff" * 200_000, 100),
    Case("without a key, heads that never end", _stay, bound=1.0, is_each=True),
    Case("without a key, requests in a pipeline", _pipelined, bound=1.0, is_each=True),
    Case("without a key, 10,000 refusals", _refusals),
    Case("without a key, 20,000 different paths of 8 KB", _paths, bound=1.0, is_each=True),
    Case("without a key, 1,000 connections that say nothing", _idle, bound=1.0, is_each=True),
)
BODIES = (
    each("a WebSocket", lambda n: get(b"/ws?clientId=%d" % n, *WEBSOCKET)),
    each("a WebSocket, 200 KB behind", lambda n: get(b"/ws", *WEBSOCKET) + b"\x89\x80aaaa" * 33_000, 100),
    each("a POST of 200 KB", lambda n: post(b"/prompt", b"a" * 200_000), 100),
    each("a POST of 60 KB", lambda n: post(b"/prompt", b"a" * 60_000), 100),
    each("a POST of 100,000 chunks", lambda n: chunked(b"/prompt", b"a", 100_000), 50),
    each("a POST of 300 chunks", lambda n: chunked(b"/prompt", b"a", 300)),
    each("a POST of chunks in a pipeline", lambda n: get(b"/queue") + chunked(b"/prompt", b"a", 100_000), 50),
    each("a GET of 20,000 chunks", lambda n: chunked(b"/queue", b"a", 20_000, method=b"GET"), 50),
    each("a GET of 300 chunks", lambda n: chunked(b"/queue", b"a", 300, method=b"GET")),
    each("the manifest, 20,000 chunks", lambda n: chunked(b"/manifest.json", b"a", 20_000, method=b"GET"), 50),
    each("the manifest, 60 KB", lambda n: post(b"/manifest.json", b"a" * 60_000, method=b"GET"), 100),
    each("the manifest", lambda n: get(b"/manifest.json")),
    each("a sign-in form of many names", lambda n: post(b"/gateway/signin", b"a&" * 4000, FORM)),
    each("a sign-in form of chunks", lambda n: chunked(b"/gateway/signin", b"a", 100_000, FORM), 50),
    each("a sign-in form of %25", lambda n: post(b"/gateway/signin", filled(b"key=%d" % n, b"%25", TARGET), FORM)),
    each("a sign-in form in Punycode", lambda n: post(b"/gateway/signin", b"a" * TARGET, FORM + b"; charset=punycode")),
    each("a sign-in form of lines", lambda n: post(b"/gateway/signin", b"\n" * TARGET, FORM)),
    each("a long Content-Type", lambda n: post(b"/gateway/signin", b"a", filled(b"Content-Type: a/b", b";a=b", FIELD))),
    each("a Content-Type", lambda n: post(b"/gateway/signin", b"a", filled(b"Content-Type: a/b%d" % n, b";a", 250))),
    Case("without a key, bodies that never end", _flood, bound=1.0, is_each=True),
)
STRANGERS = (*TARGETS, *HEADERS, *BODIES, Case("a user's bodies of 400,000 chunks", _chunks))
