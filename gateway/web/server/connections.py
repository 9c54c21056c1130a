"""Clients' connections: how many there may be, and how long each may take over what it sends and reads.

aiohttp limits none of this. Each connection's protocol stands before aiohttp's own and notes what happens, which costs
a request next to nothing; a sweep over all of them finds those whose time is up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.settings import ServerSettings
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks, pause
from gateway.tenants.networks import network_of
from gateway.web.http.client_address import TrustedProxies
from gateway.web.http.error_bodies import Protocol, of_exception, with_body
from gateway.web.http.request_ids import head_line, new_request_id, noted, request_id_of
from gateway.web.http.request_keys import GRANT
from gateway.web.http.request_log import RequestLog
from gateway.web.http.responses import problem
from gateway.web.server.parser_feed import MAX_UNREAD, ParserFeed, State
from gateway.web.server.request_smuggling import fault
from gateway.web.server.timeouts import ConnectionTimeouts, Phase

_log = logs.get("connections")

MAX_SWEEP = 1.0
SWEEP_LEAST = 0.05
# After the answer that refuses a slow body, or a close that waits for its reader.
GRACE_SECONDS = 5.0
# At a shutdown, for the first request of a connection that stands.
NEW_SECONDS = 0.5
# For so long nobody is looked for that could give way once nobody was found.
FULL_SECONDS = 0.25


class SlowBody(TimeoutError):
    """The client sends the body of its request too slowly. Raised where the body is read."""


class Connection(asyncio.Protocol):
    """One client's connection, between its transport and aiohttp's protocol.

    Args:
        table: where it is counted.
        inner: aiohttp's protocol.
        address: the peer's, or of those that count as one with it.
        http_log: has a line of each request that can't be taken.
    """

    __slots__ = ("_inner", "_table", "address", "fault", "handshake", "intake", "pace", "payload", "request",
                 "transport")  # fmt: skip

    def __init__(self, table: Connections, inner: web.RequestHandler, address: str, http_log: RequestLog) -> None:
        self._table = table
        self._inner = inner
        self.intake = ParserFeed(inner, http_log)
        self.address = address
        self.pace = ConnectionTimeouts(time.monotonic())
        self.payload: Any = None
        self.transport: asyncio.Transport | None = None
        self.handshake: asyncio.Task[None] | None = None
        self.fault: tuple[int, str] | None = None
        self.request: web.BaseRequest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands, its TLS handshake included."""
        # uvloop's has all that is asked of an asyncio.Transport, and is none.
        self.transport = cast(asyncio.Transport, transport)
        self.pace.made(time.monotonic())
        self._table.made(self, self._inner)
        self.intake.made(self.transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        pace = self.pace
        pace.received += len(data)
        if pace.phase is Phase.IDLE:
            pace.first_byte(time.monotonic())
        self.intake.take(data)

    def eof_received(self) -> None:
        """The peer sends nothing more."""
        self._inner.eof_received()

    def pause_writing(self) -> None:
        """The peer does not read as fast as it is written to."""
        self.pace.stalled_since = time.monotonic()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.pace.stalled_since = None
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._table.closed(self, self._inner)
        self.intake.lost()
        self._inner.connection_lost(exc)
        self.transport = None

    @property
    def is_let_in(self) -> bool:
        """Whether what let its last request in still holds.

        A file is sent after its handler has ended, so it is not asked whether that request is still under way; a
        connection that only waits may be closed at any time (RFC 9112, section 9.5).
        """
        grant = self.request.get(GRANT) if self.request is not None else None
        return grant is None or bool(grant.holds(time.time()))

    def cut(self) -> None:
        """End it at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()


class Connections:
    """All connections of clients. `start` begins to look after them, `close` ends that.

    Args:
        settings: how many there may be, and how slow.
        proxies: those that are not counted.
        metrics: counts connections.
        most: how many there are files for.
        intakes: where the gate finds the intake of each connection that stands.
        http_log: has a line of each request that the gate does not see.
    """

    def __init__(
        self,
        settings: ServerSettings,
        proxies: TrustedProxies,
        metrics: Metrics,
        maximum: int,
        intakes: dict[web.RequestHandler, ParserFeed],
        http_log: RequestLog,
    ) -> None:
        self._settings = settings
        self._proxies = proxies
        self._metrics = metrics
        self._maximum = maximum
        self._all: dict[Connection, None] = {}
        self._inner: dict[web.RequestHandler, Connection] = {}
        self._intakes = intakes
        self._http_log = http_log
        self._by_address: Counter[str] = Counter()
        self._full_until = 0.0
        self._draining = False
        # Set while draining, once no connection is left or nobody waits for those that are.
        self._drained = asyncio.Event()
        self._tasks = Tasks("connections")

    def __len__(self) -> int:
        return len(self._all)

    def start(self) -> None:
        """Begin to look after those whose time is up."""
        settings = self._settings
        shortest = min(settings.header_timeout, settings.body_timeout, settings.send_timeout)
        self._tasks.repeat(self._sweep, "sweep", max(min(shortest / 4, MAX_SWEEP), SWEEP_LEAST), at_once=False)

    async def drain(self, seconds: float) -> None:
        """Let the requests that have begun be read and answered, and close each connection behind its answer.

        Connections that wait for a further request are closed at once (RFC 9112, section 9.5), new ones that send none
        after `NEW_SECONDS`, because their first request may be under way.

        Args:
            seconds: how long this may take; `hurry` ends it sooner.
        """
        self._draining, began = True, time.monotonic()
        self._close_waiting(Phase.IDLE)
        self._look_whether_drained()
        if not self._drained.is_set():
            _log.info("requests_draining", connections=len(self._all), seconds=seconds)
        if any(connection.pace.phase is Phase.NEW for connection in self._all):
            await pause(min(NEW_SECONDS, seconds), self._drained)
            self._close_waiting(Phase.NEW)
        await pause(seconds - (time.monotonic() - began), self._drained)
        if self._all:
            _log.warning("requests_cut", connections=len(self._all), hint="server.drain_timeout, or a second signal")

    def hurry(self) -> None:
        """Wait for no request any more, whether `drain` has begun or begins later."""
        self._drained.set()

    def _close_waiting(self, phase: Phase) -> None:
        """Close connections in this phase that hold no unsent answer."""
        now = time.monotonic()
        for connection in list(self._all):
            if connection.pace.phase is not phase or connection.pace.stalled_since is not None:
                continue
            if connection.transport is not None:
                connection.transport.close()
                # Under TLS the peer has to say that it closes, too.
                connection.pace.leaving_since = now - self._settings.send_timeout + GRACE_SECONDS
            elif connection.handshake is not None:
                connection.handshake.cancel()

    def _look_whether_drained(self) -> None:
        if self._draining and not self._all:
            self._drained.set()

    async def close(self) -> None:
        """Stop that. The connections are closed by the server that they belong to."""
        await self._tasks.close()

    def watch(self, server: web.Server) -> None:
        """Have a server say when a request begins and ends. Before it serves its first."""
        make, answer = server.request_factory, server.request_handler

        def made(
            message: RawRequestMessage, payload: Any, protocol: web.RequestHandler, writer: Any, task: Any
        ) -> web.BaseRequest:
            connection = self._inner.get(protocol)
            if connection is not None:
                connection.payload, connection.fault = payload, fault(message)
                if connection.intake.state is State.HEAD:
                    connection.intake.began()
                connection.pace.began(time.monotonic(), is_upgrade=message.upgrade)
            return make(message, payload, protocol, writer, task)

        async def answered(request: web.BaseRequest) -> web.StreamResponse:
            connection = self._inner.get(request.protocol)
            if connection is None:
                # It is gone already: nobody reads this.
                return await answer(request)
            try:
                if connection.fault is not None:
                    response: web.StreamResponse = _refusal(*connection.fault)
                else:
                    connection.request = request
                    try:
                        response = with_body(request, await answer(request))
                    except web.HTTPException as error:
                        response = of_exception(request, error)
                if self._http_log.is_on and not noted(request).is_logged:
                    self._http_log.write(request, response.status, time.monotonic() - connection.pace.since)
                if self._draining:
                    response.force_close()
                if not connection.payload.is_eof():
                    await _settle(connection, request, response)
                return response
            finally:
                now = time.monotonic()
                connection.pace.ended(now)
                if connection.intake.ended():
                    connection.pace.first_byte(now)

        server.request_factory, server.request_handler = made, answered

    def admit(self, server: web.Server, address: str) -> Connection | str:
        """A connection for one that was accepted; or the limit that refuses it: ``address`` or ``full``."""
        key, maximum = network_of(address), self._settings.max_connections_per_address
        if self._by_address[key] >= maximum and not self._proxies.knows(address):
            self._metrics.connections_refused.labels("address").inc()
            return "address"
        if len(self._all) >= self._maximum and not self._make_room():
            self._metrics.connections_refused.labels("full").inc()
            return "full"
        connection = Connection(self, Protocol(server, self._http_log), key, self._http_log)
        self._all[connection] = None
        self._by_address[key] += 1
        self._metrics.connections.set(len(self._all))
        return connection

    def made(self, connection: Connection, inner: web.RequestHandler) -> None:
        """A connection stands."""
        self._inner[inner] = connection
        self._intakes[inner] = connection.intake

    def closed(self, connection: Connection, inner: web.RequestHandler | None = None) -> None:
        """A connection is gone, or its handshake failed."""
        if inner is not None:
            self._inner.pop(inner, None)
            self._intakes.pop(inner, None)
        if connection not in self._all:
            return
        del self._all[connection]
        self._by_address[connection.address] -= 1
        if self._by_address[connection.address] <= 0:
            del self._by_address[connection.address]
        self._metrics.connections.set(len(self._all))
        self._look_whether_drained()

    def _make_room(self) -> bool:
        """Have those go that have waited longest for a request. False if all are busy."""
        now = time.monotonic()
        if now < self._full_until:
            return False
        waiting = sorted((c for c in self._all if c.pace.is_waiting), key=lambda c: c.pace.since)
        if not waiting:
            self._full_until = now + FULL_SECONDS
            _log.warning("connections_exhausted", connections=len(self._all))
        for connection in waiting[: 1 + len(self._all) // 64]:
            self._cut(connection, "room")
        return bool(waiting)

    def _cut(self, connection: Connection, reason: str) -> None:
        self._metrics.connections_cut.labels(reason).inc()
        connection.cut()
        self.closed(connection)

    async def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self._all):
            self._look(connection, now)

    def _look(self, connection: Connection, now: float) -> None:
        pace, transport, payload = connection.pace, connection.transport, connection.payload
        if transport is None:
            return
        if transport.is_closing():
            pace.leaving_since = pace.leaving_since or now
        reads_body = payload is not None and not payload.is_eof() and payload.exception() is None
        is_read, is_let_in = transport.is_reading(), connection.is_let_in
        match pace.overdue(now, self._settings, reads_body=reads_body, is_read=is_read, is_let_in=is_let_in):
            case None:
                return
            case "body":
                _log.info("body_too_slow", **self._about(connection))
                self._metrics.connections_cut.labels("body").inc()
                payload.set_exception(SlowBody("the body comes too slowly"))
                pace.leaving_since = now - self._settings.send_timeout + GRACE_SECONDS
            case "header":
                self._metrics.connections_cut.labels("header").inc()
                # Nobody else writes to it: no request has begun, nor is the rest of one being thrown away.
                is_refused = connection.intake.state is State.GONE
                if pace.received and (payload is None or payload.is_eof()) and not is_refused:
                    request_id = new_request_id()
                    transport.write(_timed_out(request_id))
                    self._http_log.refused(request_id, 408, transport)
                transport.close()
                pace.leaving_since = now - self._settings.send_timeout + GRACE_SECONDS
            case reason:
                _log.info("connection_cut", **self._about(connection), reason=reason)
                self._cut(connection, reason)

    def _about(self, connection: Connection) -> dict[str, str | None]:
        """Return what a log line says of a connection: its client, and its last request."""
        request = connection.request
        if request is None:
            return {"client_address": connection.address}
        return {"request_id": request_id_of(request), "client_address": self._http_log.address_of(request)}


async def _settle(connection: Connection, request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Send an answer before its request's body is read: read the rest if it is short, else close the connection."""
    payload = connection.payload
    if payload.exception() is not None:
        # The body came too slowly, or is malformed: aiohttp closes the connection.
        return
    length = request.content_length
    # If the client waits for leave to send its body, the body may never come.
    is_short = length is not None and length <= MAX_UNREAD and "Expect" not in request.headers
    if not is_short:
        response.force_close()
    try:
        await response.prepare(request)
        await response.write_eof()
        if is_short:
            connection.intake.open()
            while not payload.is_eof():
                await payload.readany()
            return
    except (OSError, web.RequestPayloadError):
        # The client is gone, sends too slowly, or ends in mid-body.
        pass
    else:
        await connection.intake.linger()
    request.protocol.force_close()


def _refusal(status: int, reason: str) -> web.StreamResponse:
    """What follows on this connection can't be told from the request's own body: it is closed."""
    response = problem(status, "malformed_request", "The request is not taken", reason)
    response.force_close()
    return response


def _timed_out(request_id: str) -> bytes:
    body = json_codec.dumps(
        error_body("request_timeout", "The request comes too slowly", "its headers did not come in time")
    )
    head = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\n"
    return b"%b%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (head, head_line(request_id), len(body), body)
