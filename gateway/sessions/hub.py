"""The hub of all sessions. A session is one client's presence, (tenant, clientId), with all its sockets."""

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
from gateway.jobs.routing.eta import Shown
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.sessions.buffer_bounds import Buffers
from gateway.sessions.client_socket import ClientSocket
from gateway.sessions.eta_events import EtaEvents
from gateway.sessions.intake import Budget, install, tenant_bucket
from gateway.sessions.statuses import Statuses
from gateway.settings import SessionSettings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks
from gateway.tenants.keys import Grant
from gateway.tenants.token_bucket import TokenBucket

SWEEP_SECONDS = 5.0
# Maximum uncounted bytes in a connection's own buffer, and one frame more. Then the writer waits for the reader.
TRANSPORT_BYTES = 16 * 1024
# Headers that aiohttp reads for a handshake (RFC 6455, section 4.2.1). All of them are ASCII.
_HANDSHAKE = ("Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key")


class Hub:
    """Hub that connects sockets to the bus.

    Args:
        features: returns the feature flags for a tenant's clients.
        shown: returns what the tenant of an open job is shown of it.
    """

    def __init__(
        self,
        ledger: Ledger,
        bus: Bus,
        metrics: Metrics,
        settings: SessionSettings,
        features: Callable[[str], dict[str, Any]],
        shown: Callable[[Job], Shown],
    ) -> None:
        self._ledger = ledger
        self._bus = bus
        self._metrics = metrics
        self._settings = settings
        self._features = features
        self._sockets: dict[ClientSocket, Grant | None] = {}
        self._statuses = Statuses(ledger, bus)
        self._etas = EtaEvents(ledger, shown)
        self._buffers = Buffers(settings.tenant_buffer, settings.total_buffer)
        self._received: dict[str, TokenBucket] = {}
        metrics.sockets_buffered.set_function(lambda: self._buffers.bytes)
        self._tasks = Tasks("sessions")
        self._closing = False

    def start(self) -> None:
        """Start the periodic check for slow readers and ended grants, and the events of ETAs."""
        self._etas.start()
        self._tasks.repeat(self._sweep, "sweep", SWEEP_SECONDS, at_once=False)

    async def close(self) -> None:
        """Close all sockets with 1001, as a server that goes away does (RFC 6455, section 7.4.1)."""
        self._closing = True
        for socket in list(self._sockets):
            socket.close(WSCloseCode.GOING_AWAY, "the gateway is shutting down")
        await self._etas.close()
        await self._tasks.close()

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def buffered(self) -> int:
        """Return the bytes that wait for readers."""
        return self._buffers.bytes

    def close_ended(self, *sockets: ClientSocket) -> None:
        """Close the given sockets, or any, whose key or sign-in is no longer valid, with 1008 (policy violation)."""
        now = time.time()
        for socket in sockets or list(self._sockets):
            grant = self._sockets[socket]
            if grant is not None and not grant.holds(now):
                socket.close(WSCloseCode.POLICY_VIOLATION, "what let this socket in holds no more")

    async def serve(self, request: web.Request, tenant: str, grant: Grant | None = None) -> web.StreamResponse:
        """Serve GET /ws for a tenant until the socket closes, or its grant is no longer valid.

        Raises:
            web.HTTPBadRequest: the request is no WebSocket handshake.
        """
        if not all(value.isascii() for name in _HANDSHAKE for value in request.headers.getall(name, ())):
            # Otherwise aiohttp's own refusal fails, because it repeats the value.
            raise web.HTTPBadRequest(text="a header of the WebSocket handshake is not ASCII")
        # Use no compression, so that a small message stays small. Don't let aiohttp answer pings, because each incoming
        # frame is counted first.
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
        wanted = request.rel_url.query.get("events", "").split(",")
        interleave = "interleave" in wanted
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
            # Greet and subscribe without an await in between, so that no event is missed or sent twice.
            self._greet(socket, tenant)
            leaving.callback(self._bus.subscribe(session_topic(tenant, session_id), socket.send))
            self._statuses.join(tenant, socket)
            leaving.callback(self._statuses.leave, tenant, socket)
            if "eta" in wanted:
                self._etas.join(tenant, session_id, socket)
                leaving.callback(self._etas.leave, tenant, session_id, socket)
            self._sockets[socket] = grant
            leaving.callback(self._sockets.pop, socket)
            leaving.enter_context(self._metrics.sockets.track_inprogress())
            if self._closing:
                socket.close(WSCloseCode.GOING_AWAY, "the gateway is shutting down")
            # Check the grant again, because it may have ended during the setup. Nothing has been written yet.
            self.close_ended(socket)
            await socket.run()
        return response

    def _greet(self, socket: ClientSocket, tenant: str) -> None:
        """Send ``status`` with the sid, then the progress of the session's running jobs."""
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
        """Return the budget of a new socket's incoming bytes."""
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
        """Drop the full budgets of tenants without sockets, because new ones would be the same."""
        full = [tenant for tenant, bucket in self._received.items() if bucket.full_in(now) <= 0.0]
        for tenant in full:
            if tenant not in self._buffers:
                del self._received[tenant]
