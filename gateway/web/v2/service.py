"""The Comfy API v2: all parts of it that its routes may call. `restore`, `start`, and `close` at the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

from aiohttp import web

from gateway.comfy.file_refs import FileRef
from gateway.fleet.fleet import Fleet
from gateway.jobs.engine import Engine
from gateway.settings import Settings
from gateway.store.protocol import Store
from gateway.telemetry.tasks import Tasks
from gateway.telemetry.times import HOLD_SECONDS, SteadyClock
from gateway.web.guard.context import Context, caller, context_of
from gateway.web.http.base_path import link_prefix
from gateway.web.http.client_address import client_host, client_scheme
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.assets import Assets
from gateway.web.v2.jobs import Jobs
from gateway.web.v2.kept_jobs import KeptJobs
from gateway.web.v2.keys import IdempotencyKeys
from gateway.web.v2.model import Links
from gateway.web.v2.sizes import Sizes
from gateway.web.v2.stream_buffers import StreamBuffers
from gateway.web.v2.waits import Waits

SWEEP_SECONDS = 15.0
STREAMS_RETRY_SECONDS = 5
# Long documents that are split at a time.
MAX_THREADS = 2
# Event streams of jobs with many outputs that send some of them in one round of the event loop.
MAX_BURSTS = 4

# Answers with a file of the caller's, None if it is none.
SendFile = Callable[[web.Request, FileRef], Awaitable[web.StreamResponse | None]]


class V2:
    """Parts of the Comfy API v2.

    Attributes:
        is_closing: True once the gateway stops, so that event streams end.
        waits: answers that wait for the end of a job.
        tasks: submissions that go on after their answer.
        threads: bounds the long documents that are split at a time.
        bursts: bounds the event streams that send many outputs at a time.
        stream_buffers: counts the bytes that wait for readers of event streams.
        send_file: answers with a file of the caller's (`web/routes/view.py`); the table of routes sets it.
    """

    send_file: SendFile

    def __init__(self, settings: Settings, store: Store, engine: Engine, fleet: Fleet) -> None:
        keep_ms = int(settings.store.retention.max_age * 1000)
        self._settings = settings.v2
        self._clock = SteadyClock(min(HOLD_SECONDS, keep_ms / 4000), time.time(), time.monotonic())
        self.kept = KeptJobs(store, keep_ms)
        self.keys = IdempotencyKeys(store)
        self.sizes = Sizes(engine, fleet)
        self.threads = asyncio.Semaphore(MAX_THREADS)
        self.jobs = Jobs(engine, self.kept, self.sizes, keep_ms, self.threads)
        self.assets = Assets(store, engine.files, engine.uploads)
        self.waits = Waits(self.kept, settings.run)
        self.bursts = asyncio.Semaphore(MAX_BURSTS)
        self.stream_buffers = StreamBuffers(settings.v2.tenant_buffer, settings.v2.total_buffer)
        self.is_closing = False
        self.tasks = Tasks("v2")
        self._streams: Counter[str] = Counter()
        self._wakes: set[asyncio.Event] = set()
        steps = engine.ledger.steps
        steps.at_end, steps.forgets = (*steps.at_end, self.kept), (*steps.forgets, self.kept)

    async def restore(self) -> None:
        """Read what earlier runs kept, after the engine has read its own.

        Raises:
            StoreError: the journal can't be read.
        """
        await self.kept.restore()
        await self.keys.restore()
        await self.assets.restore()

    def start(self) -> None:
        """Begin to forget what is too old."""
        self.tasks.repeat(self._sweep, "sweep", SWEEP_SECONDS, at_once=False)

    async def _sweep(self) -> None:
        now = time.time()
        # While the clock may be wrong, nothing is too old.
        trusted = int(now * 1000) if self._clock.is_steady(now, time.monotonic()) else 0
        self.keys.sweep(trusted)
        self.kept.sweep(trusted, self.jobs.is_known)
        await self.assets.sweep(trusted)

    def end_streams(self) -> None:
        """End all event streams and waits, because the server drains its connections."""
        self.is_closing = True
        self.waits.close()
        for event in self._wakes:
            event.set()

    async def close(self) -> None:
        """Stop."""
        self.end_streams()
        await self.tasks.close()
        await self.sizes.close()

    @contextmanager
    def stream(self, tenant: str, wake: asyncio.Event) -> Iterator[None]:
        """Count an event stream while it is open. `wake` is set when the gateway stops.

        Raises:
            V2Error: too many are open.
        """
        is_full = self._streams[tenant] >= self._settings.max_streams
        if is_full or self._streams.total() >= self._settings.max_total_streams:
            said = "Maximum concurrent event streams reached; poll GET /jobs/{id} instead."
            raise V2Error(429, "too_many_streams", said, headers={"Retry-After": str(STREAMS_RETRY_SECONDS)})
        self._streams[tenant] += 1
        self._wakes.add(wake)
        try:
            yield
        finally:
            self._wakes.discard(wake)
            self._streams[tenant] -= 1
            if not self._streams[tenant]:
                del self._streams[tenant]


V2_KEY = web.AppKey("v2", V2)


def v2_of(request: web.Request) -> V2:
    """Return the parts of the API for a request."""
    return request.app[V2_KEY]


def parts_of(request: web.Request) -> tuple[V2, Context]:
    """Return the parts of the API, and those of the gateway, for a request."""
    return v2_of(request), context_of(request)


def links_for(request: web.Request, tenant: str) -> Links:
    """Return links as the client of a request sees them: with its scheme and host, and the prefix of the gateway.

    Args:
        tenant: owner of what they lead to, which an admin's links name: the admin may have a job of the same id.
    """
    host = client_host(request) or "localhost"
    query = "" if tenant == caller(request).tenant else "?" + urlencode({"tenant": tenant})
    return Links(f"{client_scheme(request)}://{host}{link_prefix(request)}", query)
