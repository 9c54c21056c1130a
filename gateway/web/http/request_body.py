"""Bodies of requests, read within bounds: `server.max_body`, and what the caller's tenant may send.

Of a compressed body (RFC 9110, section 8.4) the unpacked bytes count. A body that is passed on stays packed.
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

# Maximum depth of JSON in a body that is no prompt. Bodies of ComfyUI's clients are hardly nested.
MAX_DEPTH = 100
# The name under which the gate notes the maximum body of the caller's tenant.
MAX_BODY_BYTES = "max_body_bytes"
# The name under which a body that is passed on notes the limit that ended it.
REACHED = "limit_reached"
# ComfyUI decodes JSON by whatever charset its Content-Type names (server.py, request.json). Some of Python's codecs
# take time that grows with the square of the text (punycode, idna); nobody sends JSON in those.
_CHARSETS = frozenset({"ascii", "cp1252", "iso8859-1", "utf-16", "utf-16-be", "utf-16-le", "utf-32"})


async def read_body(
    request: web.Request, maximum: int | None = None, grow: Callable[[int], None] | None = None
) -> bytes:
    """Return a request's body, unpacked.

    Args:
        maximum: maximum size for the route, in bytes; None for `server.max_body`.
        grow: called with the number of bytes received so far; see `Limits.body`.

    Raises:
        HTTPRequestEntityTooLarge: the body has more than `maximum` bytes, or than `server.max_body`.
        LimitReached: the body has more bytes than its tenant may send.
        UnknownCoding, BadPacking: the body has an unknown coding, or does not unpack.
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
    """Yield a request's body, unpacked, as it comes. The caller must stop if the body has more bytes than it takes.

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
            # Let others run in between, because a little may unpack to much.
            await asyncio.sleep(0)
    if unpacker is not None:
        unpacker.end()


async def read_json(
    request: web.Request, maximum: int | None = None, grow: Callable[[int], None] | None = None
) -> bytes:
    """Return a body that should be JSON, in UTF-8. `maximum` and `grow`: see `read_body`.

    Raises:
        MalformedJson: the body's charset is not taken, or the body is not in it.
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
    """Return a request's body to be passed on as it comes; None if it has none.

    Reading it raises `LimitReached` if the body has more bytes than its tenant may send.
    """
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
