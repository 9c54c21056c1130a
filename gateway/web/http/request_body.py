"""Bodies of requests, read within bounds: `server.max_body`, and what the caller's tenant may send.

Of a body that came compressed (RFC 9110, section 8.4) what comes out is counted. One that is passed on stays packed.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import web

from gateway.comfy import json_codec
from gateway.tenants.limits import body_too_large
from gateway.web.http.decompression import Decompressor

# How deep the JSON of a body may lie that is no prompt: those of ComfyUI's clients hardly do.
MAX_DEPTH = 100
# Where the gate puts what the caller's tenant may send.
MAX_BODY_BYTES = "most_body_bytes"
# Where a body that is passed on leaves why it is not.
REACHED = "limit_reached"
# ComfyUI decodes JSON by whatever charset its Content-Type names (server.py, request.json). Some of Python's codecs
# take time that grows with the square of the text (punycode, idna); nobody sends JSON in those.
_CHARSETS = frozenset({"ascii", "cp1252", "iso8859-1", "utf-16", "utf-16-be", "utf-16-le", "utf-32"})


async def read_body(
    request: web.Request, maximum: int | None = None, grow: Callable[[int], None] | None = None
) -> bytes:
    """A request's body, unpacked.

    Args:
        most: the bytes that the route takes; None for what `server.max_body` says.
        grow: told of the bytes that have come; see `Limits.body`.

    Raises:
        HTTPRequestEntityTooLarge: it has more than `maximum` bytes, or than `server.max_body`.
        LimitReached: it has more than its tenant may send.
        UnknownCoding, BadPacking: it came compressed in a way that is not taken, or does not unpack.
    """
    body = bytearray()
    maximum = request.client_max_size if maximum is None else min(maximum, request.client_max_size)
    if "Content-Encoding" in request.headers:
        async for piece in pieces(request):
            body += piece
            _check(request, len(body), maximum)
            if grow is not None:
                grow(len(body))
        return bytes(body)
    if (request.content_length or 0) > maximum:
        raise web.HTTPRequestEntityTooLarge(maximum, request.content_length or 0)
    while chunk := await request.content.readany():
        body += chunk
        _check(request, len(body), maximum)
        if grow is not None:
            grow(len(body))
    return bytes(body)


async def pieces(request: web.Request) -> AsyncIterator[bytes]:
    """A request's body, unpacked, as it comes; it is the reader's to end it where it has more than is taken.

    Raises:
        LimitReached, UnknownCoding, BadPacking: see `read_body`.
    """
    coding = request.headers.get("Content-Encoding", "").strip()
    unpacker = Decompressor(coding) if coding.lower() not in ("", "identity") else None
    size = 0
    while chunk := await request.content.readany():
        for piece in (chunk,) if unpacker is None else unpacker.feed(chunk):
            size += len(piece)
            _check_own(request, size)
            yield piece
            # A little may unpack to much: others are served meanwhile.
            await asyncio.sleep(0)
    if unpacker is not None:
        unpacker.end()


async def read_json(
    request: web.Request, maximum: int | None = None, grow: Callable[[int], None] | None = None
) -> bytes:
    """A body that should be JSON, in UTF-8. `maximum` and `grow`: see `read_body`.

    Raises:
        MalformedJson: it is in a charset that is not taken, or not in the one that it says.
        HTTPRequestEntityTooLarge, LimitReached, UnknownCoding, BadPacking: see `read_body`.
    """
    body, charset = await read_body(request, maximum, grow), request.charset
    if charset is None or charset.lower() == "utf-8":
        return body
    try:
        name = codecs.lookup(charset).name
        if name == "utf-8":
            return body
        if name in _CHARSETS:
            return body.decode(name).encode("utf-8", "surrogatepass")
    except (LookupError, UnicodeError) as error:
        raise json_codec.MalformedJson(f"it can't be read as {charset[:40]}") from error
    raise json_codec.MalformedJson(f"the charset {charset[:40]} is not taken; send UTF-8")


def stream_body(request: web.Request) -> AsyncIterator[bytes] | aiohttp.StreamReader | None:
    """A request's body to be passed on as it comes; None if it has none. Reading it raises as `read_body` does."""
    if not request.can_read_body:
        return None
    return request.content if request.get(MAX_BODY_BYTES) is None else _counted(request)


async def _counted(request: web.Request) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        _check_own(request, size)
        yield chunk


def _check(request: web.Request, size: int, maximum: int) -> None:
    _check_own(request, size)
    if size > maximum:
        raise web.HTTPRequestEntityTooLarge(maximum, size)


def _check_own(request: web.Request, size: int) -> None:
    maximum: int | None = request.get(MAX_BODY_BYTES)
    if maximum is not None and size > maximum:
        request[REACHED] = reached = body_too_large(maximum, size)
        raise reached
