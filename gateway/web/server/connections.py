"""Clients' connections: their maximum number, and timeouts for sending and reading.

aiohttp limits none of this. Each connection has a protocol before aiohttp's own, which notes events and costs a request
next to nothing. A sweep over all connections finds those whose time is up.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.web_protocol import ERROR
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.comfy.errors import error_body
from gateway.settings import ServerSettings
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks, pause
from gateway.tenants.networks import network_of
from gateway.web.http.base_path import path_of_target
from gateway.web.http.client_address import TrustedProxies
from gateway.web.http.condition_dates import without_bad_dates
from gateway.web.http.error_bodies import Protocol, of_exception, with_body
from gateway.web.http.refused_origins import note_refused_preflight
from gateway.web.http.request_ids import new_request_id, noted, request_id_of
from gateway.web.http.request_keys import GRANT
from gateway.web.http.request_log import RequestLog
from gateway.web.http.responses import problem
from gateway.web.http.v2_errors import in_form, refusal_in_bytes
from gateway.web.server.parser_feed import MAX_UNREAD, MalformedBody, ParserFeed, State
from gateway.web.server.request_smuggling import fault
from gateway.web.server.timeouts import ConnectionTimeouts, Phase

_log = logs.get("connections")

MAX_SWEEP = 1.0
SWEEP_LEAST = 0.05
# After the answer that refuses a slow body, or a close that waits for its reader.
GRACE_SECONDS = 5.0
# At a shutdown, the time for the first request of an open connection.
NEW_SECONDS = 0.5
# If no idle connection was found to close, the time until the next search.
FULL_SECONDS = 0.25
# aiohttp's message in place of one that it can't read has a plain dictionary for headers, which lacks `getall`.
_UNREADABLE = ERROR._replace(headers=CIMultiDictProxy(CIMultiDict()))


class SlowBody(TimeoutError):
    """The client sends the body of its request too slowly. Raised where the body is read."""


class Connection(asyncio.Protocol):
    """One client's connection, between its transport and aiohttp's protocol.

    Args:
        table: the table that counts the connection.
        inner: aiohttp's protocol.
        address: the network that the peer counts as (`network_of`).
        http_log: has a line of each request that can't be taken.
        base_path: the prefix of the gateway's paths.
    """

    __slots__ = ("_inner", "_sent", "_table", "_writer", "address", "fault", "handshake", "intake", "pace", "payload",
                 "request", "transport")  # fmt: skip

    def __init__(self, table: Connections, inner: Protocol, address: str, http_log: RequestLog, base_path: str) -> None:
        self._table = table
        self._inner = inner
        self.intake = ParserFeed(inner, http_log, base_path)
        self.address = address
        self.pace = ConnectionTimeouts(time.monotonic())
        self.payload: Any = None
        self._writer: AbstractStreamWriter | None = None
        self._sent = 0
        self.transport: asyncio.Transport | None = None
        self.handshake: asyncio.Task[None] | None = None
        self.fault: tuple[int, str] | None = None
        self.request: web.BaseRequest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that the connection is open, its TLS handshake included."""
        # uvloop's transport has all methods of an asyncio.Transport, but is no subclass.
        self.transport = cast(asyncio.Transport, transport)
        self.pace.made(time.monotonic())
        self._table.made(self, self._inner)
        self.intake.made(self.transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Count received bytes, and pass them on."""
        pace = self.pace
        pace.received += len(data)
        self._table.traffic.from_clients += len(data)
        if pace.phase is Phase.IDLE:
            pace.first_byte(time.monotonic())
        self.intake.take(data)

    def eof_received(self) -> None:
        """Pass on that the peer sends nothing more."""
        self._inner.eof_received()

    def pause_writing(self) -> None:
        """Note that the peer reads more slowly than the gateway writes."""
        self.pace.stalled_since = time.monotonic()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Note that the peer has caught up."""
        self.pace.stalled_since = None
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is closed."""
        self.count_sent()
        self._table.closed(self, self._inner)
        self.intake.lost()
        self._inner.connection_lost(exc)
        self.transport = None

    @property
    def is_let_in(self) -> bool:
        """Return True if the grant of the last request is still valid, or if that request needed none.

        The request may have ended, because a file is sent after its handler has ended. An idle connection may be closed
        at any time (RFC 9112, section 9.5).
        """
        grant = self.request.get(GRANT) if self.request is not None else None
        return grant is None or bool(grant.holds(time.time()))

    def writes(self, writer: AbstractStreamWriter) -> None:
        """Note the writer of the next answer."""
        self.count_sent()
        self._writer, self._sent = writer, 0

    def count_sent(self) -> None:
        """Count the bytes of the answer that were written since the last count."""
        if self._writer is not None:
            size = self._writer.output_size
            self._table.traffic.to_clients += max(size - self._sent, 0)
            self._sent = size

    def cut(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()


class _Group:
    """Connections under one bound: those of an address, or all. Nobody looks for idle ones before `full_until`."""

    __slots__ = ("full_until", "members")

    def __init__(self) -> None:
        self.members: dict[Connection, None] = {}
        self.full_until = 0.0


class Connections:
    """All connections of clients. `start` begins the sweep for overdue ones, `close` ends it.

    Args:
        settings: maximum numbers and timeouts.
        proxies: the trusted proxies, for which `max_connections_per_address` does not hold.
        metrics: counts connections.
        maximum: maximum number of connections, by the open files that the process may have.
        intakes: holds the intake of each open connection, for the gate.
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
        self.traffic = metrics.traffic
        self._maximum = maximum
        self._everyone = _Group()
        self._all = self._everyone.members
        self._inner: dict[web.RequestHandler, Connection] = {}
        self._intakes = intakes
        self._http_log = http_log
        self._by_address: dict[str, _Group] = {}
        self._draining = False
        # Set while draining, once no connection is left, or once `hurry` was called.
        self._drained = asyncio.Event()
        self._tasks = Tasks("connections")

    def __len__(self) -> int:
        return len(self._all)

    def start(self) -> None:
        """Begin to look for connections whose time is up."""
        settings = self._settings
        shortest = min(settings.header_timeout, settings.body_timeout, settings.send_timeout)
        self._tasks.repeat(self._sweep, "sweep", max(min(shortest / 4, MAX_SWEEP), SWEEP_LEAST), at_once=False)

    async def drain(self, seconds: float) -> None:
        """Let the requests that have begun be read and answered, and close each connection behind its answer.

        Connections that wait for a further request are closed at once (RFC 9112, section 9.5), new ones that send none
        after `NEW_SECONDS`, because their first request may be under way.

        Args:
            seconds: maximum time for this; `hurry` ends it sooner.
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
        """Make `drain` wait for no more requests, if it has begun or begins later."""
        self._drained.set()

    def _close_waiting(self, phase: Phase) -> None:
        """Close connections in this phase that hold no unsent answer."""
        now = time.monotonic()
        for connection in list(self._all):
            if connection.pace.phase is not phase or connection.pace.stalled_since is not None:
                continue
            if connection.transport is not None:
                connection.transport.close()
                # Give the peer a short time, because under TLS it has to close its side, too.
                connection.pace.leaving_since = now - self._settings.send_timeout + GRACE_SECONDS
            elif connection.handshake is not None:
                connection.handshake.cancel()

    def _look_whether_drained(self) -> None:
        if self._draining and not self._all:
            self._drained.set()

    async def close(self) -> None:
        """Stop the sweep. The connections' own server closes them."""
        await self._tasks.close()

    def watch(self, server: web.Server) -> None:
        """Wrap a server's handlers to note the begin and the end of each request. Call this before the first one."""
        make, answer = server.request_factory, server.request_handler

        def made(
            message: RawRequestMessage, payload: Any, protocol: web.RequestHandler, writer: Any, task: Any
        ) -> web.BaseRequest:
            connection = self._inner.get(protocol)
            if connection is not None:
                connection.writes(writer)
                connection.payload, connection.fault = payload, fault(message)
                if connection.intake.state is State.HEAD:
                    connection.intake.began()
                connection.pace.began(time.monotonic(), is_upgrade=message.upgrade)
            return make(without_bad_dates(_answerable(message)), payload, protocol, writer, task)

        async def answered(request: web.BaseRequest) -> web.StreamResponse:
            connection = self._inner.get(request.protocol)
            if connection is None:
                # The connection is closed already: nobody reads this.
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
                        if error.status == 403 and isinstance(request, web.Request):
                            note_refused_preflight(request)
                # Of CONNECT aiohttp takes the target for a host, so that the request has no path.
                target = request._message.path if request.method == "CONNECT" else None
                path = path_of_target(target, self._settings.base_path) if target is not None else None
                response = in_form(request, response, path)
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
        """Return a connection for an accepted socket, or the limit that refuses it: ``address`` or ``full``."""
        key, maximum = network_of(address), self._settings.max_connections_per_address
        group = self._by_address.get(key)
        is_full = group is not None and len(group.members) >= maximum and not self._proxies.knows(address)
        if group is not None and is_full and not self._make_room(group):
            self._metrics.connections_refused.labels("address").inc()
            return "address"
        if len(self._all) >= self._maximum and not self._make_room(self._everyone):
            self._metrics.connections_refused.labels("full").inc()
            return "full"
        protocol = Protocol(server, self._http_log)
        connection = Connection(self, protocol, key, self._http_log, self._settings.base_path)
        self._all[connection] = None
        # Closed connections may have taken their group along.
        self._by_address.setdefault(key, _Group()).members[connection] = None
        self._metrics.connections.set(len(self._all))
        return connection

    def made(self, connection: Connection, inner: web.RequestHandler) -> None:
        """Note an open connection by its protocol."""
        self._inner[inner] = connection
        self._intakes[inner] = connection.intake

    def closed(self, connection: Connection, inner: web.RequestHandler | None = None) -> None:
        """Remove a connection that is closed, or whose handshake failed."""
        if inner is not None:
            self._inner.pop(inner, None)
            self._intakes.pop(inner, None)
        if connection not in self._all:
            return
        del self._all[connection]
        group = self._by_address[connection.address]
        del group.members[connection]
        if not group.members:
            del self._by_address[connection.address]
        self._metrics.connections.set(len(self._all))
        self._look_whether_drained()

    def _make_room(self, group: _Group) -> bool:
        """Close the connections of a group that have been idle longest. Return False if none is idle.

        Of one address close those alone that have been idle for `header_timeout`. A client with more connections in use
        than the address may have is told so.
        """
        now, is_everyone = time.monotonic(), group is self._everyone
        if now < group.full_until:
            return False
        least = self._settings.header_timeout
        idle = (c for c in group.members if (c.pace.is_waiting if is_everyone else c.pace.is_spare(now, least)))
        waiting = sorted(idle, key=lambda c: c.pace.since)
        if not waiting:
            group.full_until = now + FULL_SECONDS
            if is_everyone:
                _log.warning("connections_exhausted", connections=len(self._all))
        for connection in waiting[: 1 + len(group.members) // 64]:
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
        connection.count_sent()
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
                # Write only if nobody else does: no request has begun, and no rest of one is being thrown away.
                is_refused = connection.intake.state is State.GONE
                if pace.received and (payload is None or payload.is_eof()) and not is_refused:
                    request_id = new_request_id()
                    transport.write(_timed_out(request_id, connection.intake.path))
                    self._http_log.refused(request_id, 408, transport)
                transport.close()
                pace.leaving_since = now - self._settings.send_timeout + GRACE_SECONDS
            case reason:
                _log.info("connection_cut", **self._about(connection), reason=reason)
                self._cut(connection, reason)

    def _about(self, connection: Connection) -> dict[str, str | None]:
        """Return the fields of a log line about a connection: its client, and its last request."""
        request = connection.request
        if request is None:
            return {"client_address": connection.address}
        return {"request_id": request_id_of(request), "client_address": self._http_log.address_of(request)}


def _answerable(message: RawRequestMessage) -> RawRequestMessage:
    """Return a message whose answer is HTTP/1: the answer to HTTP/2.0 or HTTP/0.9 must not claim that version."""
    if message is ERROR:
        return _UNREADABLE
    if HttpVersion10 <= message.version <= HttpVersion11:
        return message
    return message._replace(version=min(max(message.version, HttpVersion10), HttpVersion11))


async def _settle(connection: Connection, request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Send an answer before its request's body is read: read the rest if it is short, else close the connection."""
    payload = connection.payload
    if payload.exception() is not None and not isinstance(payload.exception(), MalformedBody):
        # The body came too slowly: aiohttp closes the connection.
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
    """Return the refusal of a malformed request. It closes the connection, because the end of the body is unknown."""
    response = problem(status, "malformed_request", "The request is not taken", reason)
    response.force_close()
    return response


def _timed_out(request_id: str, path: str) -> bytes:
    body = error_body("request_timeout", "The request comes too slowly", "its headers did not come in time")
    return refusal_in_bytes(path, 408, body, request_id)
