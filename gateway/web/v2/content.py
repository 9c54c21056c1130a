"""Bytes of assets, whole or one range of them (RFC 9110, section 14)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from multidict import CIMultiDict

from gateway.artifacts.object_store import StorageError
from gateway.artifacts.stored_files import StoredFiles
from gateway.comfy.client import Unanswered
from gateway.files.index import Stored
from gateway.web.http.content_safety import defuse
from gateway.web.http.request_keys import MORE_HEADERS, STREAMING
from gateway.web.http.v2_errors import V2Error

CHUNK = 2**18
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


def range_of(given: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the end of a range; None if the whole is to be sent.

    A header with another unit, or with several ranges, is ignored, as a server may.

    Raises:
        V2Error: the range is beyond the end, or ends before it begins.
    """
    if given is None or "," in given or not given.strip().lower().startswith("bytes"):
        return None
    match = _RANGE.fullmatch(given)
    if match is None or (not match[1] and not match[2]):
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
        is_there = int(match[2]) > 0 and size > 0
    else:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
        is_there = start < end
    if not is_there:
        headers = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise V2Error(416, "range_not_satisfiable", f"The file has {size} bytes.", {"size_bytes": size}, headers)
    return start, end


def _head(request: web.Request, size: int, content_type: str) -> tuple[web.StreamResponse, int, int]:
    found = range_of(request.headers.get("Range"), size)
    start, end = found or (0, size)
    headers = CIMultiDict({"Content-Type": content_type, "Accept-Ranges": "bytes", "Content-Length": str(end - start)})
    if found is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    defuse(headers, request.headers.get("Sec-Fetch-Dest"))
    headers.update(request.get(MORE_HEADERS, {}))
    return web.StreamResponse(status=200 if found is None else 206, headers=headers), start, end


async def send_bytes(request: web.Request, data: bytes, content_type: str) -> web.StreamResponse:
    """Answer with bytes in memory."""
    response, start, end = _head(request, len(data), content_type)
    return await _send(request, response, _pieces(memoryview(data)[start:end]))


async def send_path(request: web.Request, path: Path, size: int, content_type: str) -> web.StreamResponse:
    """Answer with the bytes of a file.

    Raises:
        V2Error: the file is gone.
    """
    response, start, end = _head(request, size, content_type)
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError as error:
        raise V2Error(404, "output_unavailable", "The bytes of this asset are gone.") from error

    async def read() -> AsyncIterator[bytes]:
        await asyncio.to_thread(file.seek, start)
        left = end - start
        while left > 0 and (piece := await asyncio.to_thread(file.read, min(CHUNK, left))):
            left -= len(piece)
            yield piece
        if left:
            raise ConnectionResetError("a file ended too early")

    try:
        return await _send(request, response, read())
    finally:
        await asyncio.to_thread(file.close)


async def send_stored(
    request: web.Request, files: StoredFiles, stored: Stored, content_type: str
) -> web.StreamResponse:
    """Answer with the bytes of a file in object storage.

    Raises:
        V2Error: object storage has the file no more, or can't give it now.
        Unanswered: reading failed in the middle.
    """
    response, start, end = _head(request, stored.size, content_type)
    if request.method == "HEAD" or start == end:
        return await _send(request, response, _pieces(memoryview(b"")))
    chunks = files.open(stored, start, end)
    try:
        # Read before the answer begins, so that a file that is gone has another answer.
        first = await anext(chunks, b"")
        return await _send(request, response, _whole(first, chunks, end - start))
    except StorageError as error:
        if error.kind == "missing":
            raise V2Error(404, "output_unavailable", "The bytes of this asset are gone.") from error
        said = "Object storage can't give the bytes now."
        raise V2Error(503, "upstream_unreachable", said, headers={"Retry-After": "5"}) from error
    finally:
        await chunks.aclose()


async def _whole(first: bytes, rest: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """Yield the bytes of a file, which are so many.

    Raises:
        Unanswered: reading failed, or there were more or fewer.
    """
    sent = len(first)
    yield first
    try:
        async for chunk in rest:
            sent += len(chunk)
            yield chunk
    except StorageError as error:
        raise Unanswered(error.message) from error
    if sent != size:
        raise Unanswered(f"the object has {sent} bytes in place of {size}")


async def _pieces(data: memoryview) -> AsyncIterator[memoryview]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


async def _send(
    request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes] | AsyncIterator[memoryview]
) -> web.StreamResponse:
    request[STREAMING] = True
    await response.prepare(request)
    if request.method != "HEAD":
        async for piece in pieces:
            await response.write(piece)
    await response.write_eof()
    return response
