"""A backend that breaks off in the middle of an answer: its client's connection is cut, never filled up."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.raw_http import between
from tests.support.workflows import slow

HALF = b"x" * 400
LATER = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def broken_off(head: str, body: bytes) -> bytes:
    """A backend's answer, or as much of it as comes."""
    return f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{head}\r\n\r\n".encode() + body


ANSWERS = {
    "as much is missing as a refusal has": broken_off("Content-Length: 560", HALF),
    "much is missing": broken_off("Content-Length: 1000000", HALF),
    "a piece is missing": broken_off("Transfer-Encoding: chunked", b"190\r\n" + HALF + b"\r\n"),
    "a piece is broken off": broken_off("Transfer-Encoding: chunked", b"200\r\n" + HALF),
}
ODD = {
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + HALF,
    "no status": b"HTTP/1.1 000 Nothing\r\nContent-Length: 1\r\n\r\nx",
    "a status of no class": b"HTTP/1.1 999 Odd\r\nContent-Length: 1\r\n\r\nx",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 400\r\n\r\n" + HALF,
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + HALF,
    "not HTTP": b"\x00\x01\x02\r\n\r\n",
}


async def told(port: int, path: str) -> bytes:
    """All that comes on one connection that asks for a path, then for the gateway's health."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() + LATER[:-2] + b"Connection: close\r\n\r\n")
    found = b""
    try:
        while data := await reader.read(65536):
            found += data
    except ConnectionError:
        pass
    finally:
        writer.close()
    return found


async def test_what_breaks_off_is_cut(lab: Lab) -> None:
    """For a file that the ledger knows, one that it does not, and what is passed on."""
    async with between(lab, await lab.simulator()) as backend:
        gateway = await lab.gateway(backend.url)
        comfy = Comfy(lab.http, gateway.url)
        (image,) = comfy.images(await comfy.entry(await comfy.prompt(slow(1))))
        answer = b""

        async def hook(request: web.Request, _: bytes) -> web.Response | None:
            if request.method != "GET" or not request.path.startswith(("/view", "/scripts")):
                return None
            assert request.transport is not None
            request.transport.write(answer)
            request.transport.close()
            return web.Response()

        backend.hook = hook
        paths = [f"/view?filename={image['filename']}", "/view?filename=other.png", "/scripts/app.js"]
        for name, answer in ANSWERS.items():  # noqa: B007
            for path in paths:
                found = await told(gateway.port, path)
                head, _, body = found.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200"), (name, path, found)
                assert body.count(b"x") <= len(HALF), (name, path)
                assert b"HTTP/1.1" not in body, (name, path, body[-300:])
                assert b"502" not in body, (name, path, body[-300:])
                assert not body.endswith(b"0\r\n\r\n"), (name, path)
        for name, answer in ODD.items():  # noqa: B007
            for path in paths:
                found = await told(gateway.port, path)
                assert found.startswith((b"HTTP/1.1 502", b"HTTP/1.1 503", b"HTTP/1.1 404")), (name, path, found[:300])
                assert found.count(b"HTTP/1.1 ") == 2, (name, path, found)
        for status in (204, 304):
            # One without a body may say how long that would be (RFC 9110, section 8.6).
            answer = f'HTTP/1.1 {status} X\r\nETag: "a"\r\nContent-Length: 12\r\n\r\n'.encode()
            found = await told(gateway.port, "/scripts/app.js")
            assert found.startswith(f"HTTP/1.1 {status}".encode()), found
            assert found.count(b"HTTP/1.1 ") == 2, found
