"""GET /api/v2/jobs/{id}/events: server-sent events about one job."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from aiohttp import web

from gateway.jobs.parsing.json_reader import NotRead
from gateway.jobs.state.job import Job
from gateway.store.protocol import StoreError
from gateway.telemetry.tasks import pause
from gateway.web.guard.context import caller
from gateway.web.http.request_keys import STREAMING
from gateway.web.v2.answers import answering
from gateway.web.v2.events import KEEP_ALIVE, OUTPUTS_AT_ONCE, Told, encoded_size
from gateway.web.v2.job_routes import named_job
from gateway.web.v2.model import RUNNING
from gateway.web.v2.service import V2, links_for, v2_of

# Pause between two looks at a job: progress and previews come twice a second at most.
LOOK_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 15.0
# Time for a reader to take what it was sent.
WRITE_SECONDS = 60.0
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


@answering
async def get_events(request: web.Request) -> web.StreamResponse:
    """Send a job's events: first how it is now, then each change, at last the terminal status."""
    v2, found = v2_of(request), named_job(request)
    if request.method == "HEAD":
        return web.Response(headers=_HEADERS)
    event = asyncio.Event()
    with v2.stream(caller(request).tenant, event):
        response = web.StreamResponse(headers=_HEADERS)
        request[STREAMING] = True
        await response.prepare(request)
        leave = v2.kept.wait_for(found.tenant, found.prompt_id, event)
        try:
            await _tell(request, response, v2, event, (found.tenant, found.prompt_id))
        except (TimeoutError, ConnectionResetError, aiohttp.ClientConnectionResetError):
            # The reader is gone, or takes nothing: it connects again if it wants to.
            if request.transport is not None:
                request.transport.abort()
        finally:
            leave()
        return response


async def _tell(
    request: web.Request, response: web.StreamResponse, v2: V2, event: asyncio.Event, key: tuple[str, str]
) -> None:
    told, links, written_at, is_first = Told(), links_for(request, key[0]), time.monotonic(), True
    reader, buffers = caller(request).tenant, v2.stream_buffers
    while not v2.is_closing and request.transport is not None:
        # Cleared before the look, so that an end after it is not missed.
        event.clear()
        # By its owner, because an admin may get a job of the same id meanwhile.
        found = v2.jobs.find_own(*key)
        if found is None:
            # The job was deleted. The reader asks for it, and is told so.
            break
        preview = found.live.preview if isinstance(found, Job) else None
        try:
            if isinstance(found, Job):
                view = v2.jobs.late_view(found, is_first=is_first)
            else:
                view = await v2.jobs.late_ended_view(found)
        except (NotRead, StoreError):
            # The reader asks for the job, and is told what is wrong.
            break
        is_first = False
        if len(view.outputs) > OUTPUTS_AT_ONCE // 4:
            # Turns for others, because all streams of a job hear of its end at once.
            async with v2.bursts:
                await asyncio.sleep(0)
        if preview is not None and not buffers.has_room(reader, encoded_size(preview)):
            # The next look tells it, or a newer one.
            preview = None
        frames, is_over = list(told.news(view, preview, links, time.time())), view.is_over and not told.has_more
        seconds = LOOK_SECONDS if view.status == RUNNING else _pause(view.position)
        # A slow reader's stream holds a few frames, and not the view of a job with many outputs.
        del view, found, preview
        if frames:
            joined = [b"".join(frames)]
            frames.clear()
            with buffers.holding(reader, len(joined[0])):
                await _write(response, joined.pop())
            written_at = time.monotonic()
        if is_over:
            break
        if told.has_more:
            continue
        if time.monotonic() - written_at >= KEEP_ALIVE_SECONDS:
            await _write(response, KEEP_ALIVE)
            written_at = time.monotonic()
        await pause(seconds, event)
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write_eof()


def _pause(position: int | None) -> float:
    """Return the pause of a stream of a queued job: longer the later its turn comes."""
    return LOOK_SECONDS if position is None or position <= 4 else 4 * LOOK_SECONDS


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)
