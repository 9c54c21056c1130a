"""Long answers of encoded JSON, sent a piece at a time, so that nobody waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from gateway.jobs.state.history import MAX_CACHED
from gateway.jobs.state.job import PIECE
from gateway.store.spool import Bulk, Lost, Spool
from gateway.web.http.request_keys import STREAMING
from gateway.web.http.responses import JSON_HEADERS, json_bytes, problem

# Bytes that are sent at once.
MAX_AT_ONCE = 4 * 1024 * 1024


class Busy(Exception):
    """Too much waits on disk for a tenant's readers for one more long answer."""


async def kept(spool: Spool, tenant: str, data: bytes | memoryview) -> Bulk | None:
    """Put long data on disk, so that memory does not grow with the number of slow readers; return None for short data.

    Raises:
        Busy: there is no room on disk for the data.
    """
    if len(data) <= MAX_CACHED:
        return None
    bulk = spool.take(tenant, data)
    if bulk.held:
        raise Busy
    await spool.room()
    return bulk


def busy() -> web.Response:
    """Return the refusal of a long answer that has no room on disk."""
    reason = "Too many long answers wait for their readers"
    return problem(503, "too_many_long_answers", reason, headers={"Retry-After": "5"})


async def from_disk(request: web.Request, before: bytes, bulk: Bulk, after: bytes) -> web.StreamResponse:
    """Answer with data from disk, between two short parts."""
    response = await begin(request)
    if request.method != "HEAD":
        await response.write(before)
        await send_bulk(request, response, bulk)
        await response.write(after)
        await response.write_eof()
    return response


async def send_bulk(request: web.Request, response: web.StreamResponse, bulk: Bulk) -> None:
    """Send data from disk."""
    try:
        async for piece in bulk.pieces():
            await response.write(piece)
            await asyncio.sleep(0)
    except Lost as error:
        # Cut the connection, because the client would else take the answer for whole.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("a long answer was lost on disk") from error


async def answer(request: web.Request, pieces: Iterable[bytes | memoryview]) -> web.StreamResponse:
    """Answer with all of these bytes."""
    whole = list(pieces)
    if sum(map(len, whole)) <= MAX_AT_ONCE:
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
