"""Long answers of encoded JSON, sent a piece at a time, so that nobody waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from gateway.jobs.job import PIECE
from gateway.web.answers import JSON_HEADERS, json_bytes
from gateway.web.parts import STREAMING

# Bytes that are sent at once.
MOST_AT_ONCE = 4 * 1024 * 1024


async def answer(request: web.Request, pieces: Iterable[bytes | memoryview]) -> web.StreamResponse:
    """Answer with all of these bytes."""
    whole = list(pieces)
    if sum(map(len, whole)) <= MOST_AT_ONCE:
        return json_bytes(b"".join(whole))
    response = await begin(request)
    if request.method != "HEAD":
        await send(response, whole)
        await response.write_eof()
    return response


async def begin(request: web.Request) -> web.StreamResponse:
    """Send the head of an answer whose body is sent as it is made."""
    response = web.StreamResponse(headers=JSON_HEADERS)
    request[STREAMING] = True
    await response.prepare(request)
    return response


async def send(response: web.StreamResponse, pieces: Iterable[bytes | memoryview]) -> None:
    """Send some of a body, with a turn for others between."""
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) <= PIECE:
            small.append(piece)
            continue
        small.append(b"")
        await response.write(b"".join(small))
        small.clear()
        for start in range(0, len(piece), PIECE):
            await response.write(memoryview(piece)[start : start + PIECE])
            await asyncio.sleep(0)
    if small:
        await response.write(b"".join(small))
