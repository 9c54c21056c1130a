"""All sessions. A session is one client's presence: (tenant, clientId), however many sockets it has."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, web

from gateway.comfy import events
from gateway.comfy.events import Frame
from gateway.jobs.job import SHOWN_RUNNING
from gateway.jobs.ledger import Ledger
from gateway.jobs.topics import session_topic, status_topic
from gateway.sessions.client_socket import MAX_CLIENT_MESSAGE, ClientSocket
from gateway.settings import SessionSettings
from gateway.store.protocol import Bus
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks
from gateway.tenants.keys import Grant

SWEEP_SECONDS = 5.0


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
        self._sockets: dict[ClientSocket, tuple[web.Request, Grant | None]] = {}
        self._status: dict[str, tuple[int, Frame]] = {}
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

    def close_ended(self, *sockets: ClientSocket) -> None:
        """Close those of these sockets, or of all, whose key or sign-in holds no more, with 1008 (policy violation)."""
        now = time.time()
        for socket in sockets or list(self._sockets):
            _, grant = self._sockets[socket]
            if grant is not None and not grant.holds(now):
                socket.close(WSCloseCode.POLICY_VIOLATION, "the key of this socket holds no more")

    async def serve(self, request: web.Request, tenant: str, grant: Grant | None = None) -> web.StreamResponse:
        """Serve GET /ws for a tenant until the socket closes, or what let it in holds no more."""
        response = web.WebSocketResponse(max_msg_size=MAX_CLIENT_MESSAGE, compress=False)
        await response.prepare(request)
        session_id = request.rel_url.query.get("clientId") or uuid.uuid4().hex
        interleave = request.rel_url.query.get("events") == "interleave"
        socket = ClientSocket(
            response,
            session_id,
            self._metrics,
            partial(self._features, tenant),
            self._settings.max_buffer,
            interleave=interleave,
        )
        # Greeting and subscription without an await in between: no event is missed, none is told twice.
        self._greet(socket, tenant)
        leave = [
            self._bus.subscribe(session_topic(tenant, session_id), socket.send),
            self._bus.subscribe(status_topic(tenant), lambda _: socket.send(self._status_of(tenant))),
        ]
        self._sockets[socket] = (request, grant)
        self._metrics.sockets.inc()
        if self._closing:
            socket.close(WSCloseCode.GOING_AWAY, "the gateway is shutting down")
        # What let it in may have ended while it was being set up; nothing has been written yet.
        self.close_ended(socket)
        try:
            await socket.run()
        finally:
            self._metrics.sockets.dec()
            del self._sockets[socket]
            for unsubscribe in leave:
                unsubscribe()
        return response

    def _greet(self, socket: ClientSocket, tenant: str) -> None:
        """``status`` with the sid, then where the session's running jobs are."""
        socket.send(events.status_frame(self._ledger.remaining(tenant), socket.session_id))
        mine = [
            job
            for job in self._ledger.jobs(tenant)
            if job.submission.session_id == socket.session_id and job.state in SHOWN_RUNNING and not job.live.held
        ]
        for job in sorted(mine, key=lambda job: job.start_time or 0):
            for frame in (job.live.executing, job.live.progress_state):
                if frame is not None:
                    socket.send(frame)

    def _status_of(self, tenant: str) -> Frame:
        """The tenant's ``status``, encoded once for all its sockets."""
        remaining = self._ledger.remaining(tenant)
        known = self._status.get(tenant)
        if known is None or known[0] != remaining:
            if len(self._status) > 10_000:
                self._status.clear()
            known = self._status[tenant] = (remaining, events.status_frame(remaining))
        return known[1]

    async def _sweep(self) -> None:
        self.close_ended()
        now = time.monotonic()
        for socket, (request, _) in list(self._sockets.items()):
            if socket.is_stalled(now, self._settings.stalled_after):
                socket.drop(request)
