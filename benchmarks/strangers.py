"""What somebody without a key may send: each request may cost a millisecond of CPU, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import base64
from collections.abc import Callable

from benchmarks.attacks import Attack, Case

TIMES = 400
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
    return get(target, b"Transfer-Encoding: chunked", *headers, method=method) + b"%x\r\n%b\r\n" % (
        len(chunk),
        chunk,
    ) * times


def each(name: str, make: Callable[[int], bytes], times: int = TIMES) -> Case:
    """A case that sends `times` different requests, each on a connection of its own."""

    async def attack(attack: Attack) -> int:
        return await attack.each([make(n) for n in range(times)])

    return Case(f"without a key, {name}", attack, bound=1.0, is_each=True)


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

    await asyncio.gather(*(one() for _ in range(4)), return_exceptions=True)
    return 4


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


STRANGERS: tuple[Case, ...] = (
    each("a request", lambda n: get(b"/queue")),
    each("sign-in page", lambda n: get(b"/gateway/signin?next=/%d" % n)),
    each("a path of 8 KB and 100 parts", lambda n: get(filled(b"/%d" % n, b"/" + b"x" * 80, 8000))),
    each("a path of many parts, 8 KB", lambda n: get(filled(b"/%d" % n, b"/x", 8000))),
    each("a path of many parts, 32 KB", lambda n: get(filled(b"/%d" % n, b"/x", 32_000))),
    each("a path of slashes, 32 KB", lambda n: get(filled(b"/%d" % n, b"/", 32_000))),
    each("a POST path of many parts, 32 KB", lambda n: get(filled(b"/%d" % n, b"/x", 32_000), method=b"POST")),
    each("a path of %2F, 32 KB", lambda n: get(filled(b"/%d" % n, b"%2Fx", 32_000))),
    each("a path of %2525, 32 KB", lambda n: get(filled(b"/%d" % n, b"%252525252F", 32_000))),
    each("a path of no UTF-8, 32 KB", lambda n: get(filled(b"/%d" % n, b"%C3%28", 32_000))),
    each("a path of dots, 32 KB", lambda n: get(filled(b"/%d" % n, b"/..", 32_000))),
    each("a path of raw bytes, 32 KB", lambda n: get(filled(b"/%d" % n, b"\xc3\xa9", 32_000))),
    each("an absolute URL, 32 KB", lambda n: get(filled(b"http://x/%d" % n, b"/x", 32_000))),
    each("manifest's name, 32 KB", lambda n: get(filled(b"/manifest%d" % n, b".", 32_000))),
    each("a query of many names", lambda n: get(filled(b"/queue?%d" % n, b"&a", 32_000))),
    each("a query of many tokens", lambda n: get(filled(b"/queue?token=%d" % n, b"&token=a", 32_000))),
    each("a query of %25", lambda n: get(filled(b"/queue?token=%d" % n, b"%25", 32_000))),
    each("a long token", lambda n: get(filled(b"/queue?token=%d" % n, b"a", 32_000))),
    each("a query for the sign-in page", lambda n: get(filled(b"/gateway/signin?next=/%d" % n, b"%26", 32_000))),
    each("a page that is asked for", lambda n: get(filled(b"/%d" % n, b"\xc3\xa9", 32_000), b"Accept: text/html")),
    each("a long X-API-Key", lambda n: get(b"/queue", filled(b"X-API-Key: %d" % n, b"\xff", 32_000))),
    each("many X-API-Keys", lambda n: get(b"/queue", *(b"X-API-Key: %d-%d" % (n, i) for i in range(100)))),
    each("long Basic", lambda n: get(b"/queue", b"Authorization: Basic " + base64.b64encode(b"a" * 24_000))),
    each("a long Cookie", lambda n: get(b"/queue", filled(b"Cookie: comfyui_gateway_key=%d" % n, b"; a=b", 32_000))),
    each("a Cookie of quotes", lambda n: get(b"/queue", filled(b'Cookie: comfyui_gateway_key=%d; a="' % n, b"\\1", 32_000))),
    each("a Cookie that is no cookie", lambda n: get(b"/queue", filled(b"Cookie: comfyui_gateway_key", b" ;=", 32_000))),
    each("a long Host", lambda n: get(b"/queue").replace(b"Host: x", filled(b"Host: %d" % n, b"a", 32_000))),
    each("a long Origin", lambda n: get(b"/queue", filled(b"Origin: http://%d" % n, b"[", 32_000), b"Referer: http://[")),
    each("a long Range", lambda n: get(b"/queue", filled(b"Range: bytes=%d-" % n, b",1-2", 32_000))),
    each("many headers", lambda n: get(b"/queue", *(b"X-%d: a" % i for i in range(120)))),
    each("many long headers", lambda n: get(b"/queue", *(b"X-%d: %b" % (i, b"a" * 8000) for i in range(110))), 100),
    each("many names in Connection", lambda n: get(b"/manifest.json", filled(b"Connection: x", b",x", 32_000))),
    each("many hops", lambda n: get(b"/queue", filled(b"X-Forwarded-For: 1.2.3.4", b",1.2.3.4", 32_000))),
    each("a WebSocket", lambda n: get(b"/ws?clientId=%d" % n, b"Connection: Upgrade", b"Upgrade: websocket",
         b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")),
    each("a WebSocket with 200 KB behind it", lambda n: get(b"/ws?clientId=%d" % n, b"Connection: Upgrade",
         b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
         + b"\x89\x80aaaa" * 33_000, 100),
    each("POST, 200 KB", lambda n: post(b"/prompt", b"a" * 200_000), 100),
    each("POST, 100,000 chunks", lambda n: chunked(b"/prompt", b"a", 100_000), 50),
    each("POST, 2,000 chunks", lambda n: chunked(b"/prompt", b"a", 2_000)),
    each("GET, 2,000 chunks", lambda n: chunked(b"/queue", b"a", 2_000, method=b"GET")),
    each("GET of the manifest, chunks", lambda n: chunked(b"/manifest.json", b"a", 20_000, method=b"GET"), 50),
    each("sign-in form of many names", lambda n: post(b"/gateway/signin", b"a&" * 8000,
         b"Content-Type: application/x-www-form-urlencoded")),
    each("sign-in form of chunks", lambda n: chunked(b"/gateway/signin", b"a", 100_000,
         b"Content-Type: application/x-www-form-urlencoded"), 50),
    each("sign-in form of %25", lambda n: post(b"/gateway/signin", filled(b"key=%d" % n, b"%25", 16_000),
         b"Content-Type: application/x-www-form-urlencoded")),
    each("sign-in form in gzip's name", lambda n: post(b"/gateway/signin", b"a" * 16_000,
         b"Content-Type: application/x-www-form-urlencoded; charset=punycode", b"Content-Encoding: gzip")),
    each("pipelined requests", lambda n: get(b"/queue") * 400, 20),
    each("pipelined upgrades", lambda n: get(b"/ws", b"Connection: Upgrade", b"Upgrade: websocket") * 400, 20),
    each("preflights", lambda n: get(b"/%d" % n, b"Access-Control-Request-Method: GET", b"Origin: http://x", method=b"OPTIONS")),
    each("a method that is none", lambda n: get(b"/", method=b"M" * 30_000)),
    each("no HTTP", lambda n: b"\x16\x03\x01" + b"\xff" * 200_000, 100),
    Case("without a key, bodies that never end", _flood, bound=1.0, is_each=True),
    Case("without a key, heads that never end", _stay, bound=1.0, is_each=True),
)
