"""All sessions. A session is one client's presence: (tenant, clientId), however many sockets it has."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, web

from gateway.bus import Bus, session_topic
from gateway.comfy import events
from gateway.jobs.state.ledger import Ledger
from gateway.sessions.buffers import Buffers
from gateway.sessions.client_socket import ClientSocket
from gateway.sessions.intake import Budget, install, tenant_bucket
from gateway.sessions.statuses import Statuses
from gateway.settings import SessionSettings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks
from gateway.tenants.keys import Grant
from gateway.tenants.token_bucket import TokenBucket

SWEEP_SECONDS = 5.0
# So many bytes may lie in a connection's own buffer uncounted, and a frame more; then its writer waits for its reader.
TRANSPORT_BYTES = 16 * 1024


class Hub:
    """Connects sockets to what the ledger tells over the bus.

    Args:
        features: returns the flags that the clients of a tenant are told.
    """

    def __init__(
        self,
        ledger: Ledger,
        bus: Bus,
        metrics: Metrics,
        settings: SessionSettings,
        features: Callable[[str], dict[str, Any]],
    ) -> None:
        self._ledger = ledger
        self._bus = bus
        self._metrics = metrics
        self._settings = settings
        self._features = features
        self._sockets: dict[ClientSocket, Grant | None] = {}
        self._statuses = Statuses(ledger, bus)
        self._buffers = Buffers(settings.tenant_buffer, settings.total_buffer)
        self._received: dict[str, TokenBucket] = {}
        metrics.sockets_buffered.set_function(lambda: self._buffers.bytes)
        self._tasks = Tasks("sessions")
        self._closing = False

    def start(self) -> None:
        """Begin to look after slow readers."""
        self._tasks.repeat(self._sweep, "sweep", SWEEP_SECONDS, at_once=False)

    async def close(self) -> None:
        """Close all sockets with 1001, as a server that goes away does (RFC 6455, section 7.4.1)."""
        self._closing = True
        for socket in list(self._sockets):
            socket.close(WSCloseCode.GOING_AWAY, "the gateway is shutting down")
        await self._tasks.close()

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def buffered(self) -> int:
        """Return the bytes that wait for readers."""
        return self._buffers.bytes

    def close_ended(self, *sockets: ClientSocket) -> None:
        """Close those of these sockets, or of all, whose key or sign-in holds no more, with 1008 (policy violation)."""
        now = time.time()
        for socket in sockets or list(self._sockets):
            grant = self._sockets[socket]
            if grant is not None and not grant.holds(now):
                socket.close(WSCloseCode.POLICY_VIOLATION, "what let this socket in holds no more")

    async def serve(self, request: web.Request, tenant: str, grant: Grant | None = None) -> web.StreamResponse:
        """Serve GET /ws for a tenant until the socket closes, or what let it in holds no more."""
        # Without compression: what is small when it comes stays small. Pings are answered as they are counted.
        response = web.WebSocketResponse(
            max_msg_size=self._settings.max_message,
            compress=False,
            autoping=False,
            autoclose=False,
            writer_limit=TRANSPORT_BYTES,
        )
        stream = await response.prepare(request)
        transport = request.transport
        if transport is None or stream is None:
            return response
        transport.set_write_buffer_limits(high=TRANSPORT_BYTES)
        session_id = request.rel_url.query.get("clientId") or uuid.uuid4().hex
        interleave = request.rel_url.query.get("events") == "interleave"
        socket = ClientSocket(
            response,
            stream,
            transport,
            session_id,
            self._metrics,
            partial(self._features, tenant),
            self._settings.max_buffer,
            self._buffers,
            tenant,
            self._ledger.listeners.join(tenant, session_id, interleaves=interleave),
            interleave=interleave,
        )
        with ExitStack() as leaving:
            leaving.callback(socket.leave)
            intake = socket.intake = install(request, response, self._budget(tenant), socket.refuse)
            leaving.callback(intake.release)
            # Greeting and subscription without an await in between: no event is missed, none is told twice.
            self._greet(socket, tenant)
            leaving.callback(self._bus.subscribe(session_topic(tenant, session_id), socket.send))
            self._statuses.join(tenant, socket)
            leaving.callback(self._statuses.leave, tenant, socket)
            self._sockets[socket] = grant
            leaving.callback(self._sockets.pop, socket)
            leaving.enter_context(self._metrics.sockets.track_inprogress())
            if self._closing:
                socket.close(WSCloseCode.GOING_AWAY, "the gateway is shutting down")
            # What let it in may have ended while it was being set up; nothing has been written yet.
            self.close_ended(socket)
            await socket.run()
        return response

    def _greet(self, socket: ClientSocket, tenant: str) -> None:
        """``status`` with the sid, then where the session's running jobs are."""
        socket.send(events.status_frame(self._ledger.remaining(tenant), socket.session_id))
        mine = [
            job
            for job in self._ledger.jobs(tenant)
            if job.submission.session_id == socket.session_id and job.live.turn is not None and not job.live.held
        ]
        for job in sorted(mine, key=lambda job: (job.live.turn or 0, job.start_time or 0)):
            for frame in (job.live.executing, job.live.progress_state):
                if frame is not None:
                    socket.send(frame)

    def _budget(self, tenant: str) -> Budget:
        """Return what a new socket may send."""
        settings = self._settings
        shared = self._received.get(tenant)
        if shared is None:
            shared = self._received[tenant] = tenant_bucket(settings.receive_rate, settings.receive_burst)
        return Budget(settings.receive_rate, settings.receive_burst, shared)

    async def _sweep(self) -> None:
        self.close_ended()
        now = time.monotonic()
        for socket in list(self._sockets):
            if socket.is_stalled(now, self._settings.stalled_after):
                socket.drop()
        self._forget_budgets(now)

    def _forget_budgets(self, now: float) -> None:
        """Drop the budgets of tenants without sockets from which nothing is taken: new ones would be the same."""
        full = [tenant for tenant, bucket in self._received.items() if bucket.full_in(now) <= 0.0]
        for tenant in full:
            if tenant not in self._buffers:
                del self._received[tenant]
