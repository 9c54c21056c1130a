"""Listening: each connection is counted when it is accepted, before it costs a handshake or a byte of memory more."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

from aiohttp import web

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.web.http.request_ids import head_line, new_request_id
from gateway.web.server.bind_addresses import CannotListen, bind_all
from gateway.web.server.connections import Connection, Connections

_log = logs.get("listener")

BACKLOG = 1024
# Accepted in one go before others have their turn.
BATCH = 64
REST_SECONDS = 0.5
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def _refusal(status: str, type_: str, message: str) -> tuple[bytes, bytes]:
    """Return the bytes of a refusal before and behind the header with the request's id."""
    body = json_codec.dumps(error_body(type_, message, "close connections that are not in use, or come again later"))
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode(), b"Retry-After: 5\r\nConnection: close\r\n\r\n" + body


_REFUSALS = {
    "full": _refusal("503 Service Unavailable", "too_many_connections", "All connections are in use"),
    "address": _refusal("429 Too Many Requests", "too_many_connections", "Too many connections from this address"),
}


class Listener:
    """A host and a port on which the gateway listens for a server.

    Args:
        server: aiohttp's server, which answers.
        connections: counts the connections.
        context: returns the TLS context for new connections; None for plain HTTP.
        handshake_timeout: maximum time of a TLS handshake, in seconds.
    """

    def __init__(
        self,
        server: web.Server,
        connections: Connections,
        context: Callable[[], ssl.SSLContext] | None,
        handshake_timeout: float,
    ) -> None:
        self._server = server
        self._connections = connections
        self._context = context
        self._handshake_timeout = handshake_timeout
        self._sockets: list[socket.socket] = []
        self._tasks = Tasks("listener")
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen on every address of a host.

        Raises:
            CannotListen: the gateway can't listen on one of them.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise CannotListen(host, port, error) from error
        self._sockets = bind_all(host, port, found)
        self.port = int(self._sockets[0].getsockname()[1])
        for listening in self._sockets:
            listening.listen(BACKLOG)
            loop.add_reader(listening, self._accept, listening)

    def stop_accepting(self) -> None:
        """Accept the connections that wait in the backlog, then close the port."""
        for listening in self._sockets:
            self._accept(listening)
        self._close_sockets()

    async def close(self) -> None:
        """Accept no more, and end handshakes. The server closes the open connections."""
        self._close_sockets()
        await self._tasks.close()

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _log.error("connection_accept_failed", error=error.strerror)
                self._rest(listening)
                return
            accepted.setblocking(False)
            admitted = self._connections.admit(self._server, str(address[0]))
            if isinstance(admitted, str):
                self._refuse(accepted, admitted)
            else:
                admitted.handshake = self._tasks.start(self._connect(accepted, admitted), "handshake")

    def _rest(self, listening: socket.socket) -> None:
        """Pause accepting, because files or memory ran out. Connections that end meanwhile give some back."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)

        def resume() -> None:
            if listening in self._sockets:
                loop.add_reader(listening, self._accept, listening)

        loop.call_later(REST_SECONDS, resume)

    def _refuse(self, accepted: socket.socket, limit: str) -> None:
        """Close a refused connection. Without TLS, send the refusal first, if that needs no wait."""
        with accepted:
            if self._context is None:
                try:
                    accepted.send(head_line(new_request_id()).join(_REFUSALS[limit]))
                    accepted.shutdown(socket.SHUT_WR)
                except OSError:
                    # It is gone already.
                    return

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        is_made = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._context() if self._context is not None else None,
                ssl_handshake_timeout=self._handshake_timeout if self._context is not None else None,
            )
            is_made = True
        except OSError:
            # A handshake that failed, or took too long. Those that scan do nothing else.
            pass
        finally:
            connection.handshake = None
            if not is_made:
                accepted.close()
                self._connections.closed(connection)


def files_for(connections: int, besides: int) -> int:
    """Raise the process's limit of open files if needed, and return the number of connections that fit under it.

    Args:
        connections: the wanted number of connections.
        besides: the number of other open files; a quarter of the limit if that is less.
    """
    try:
        import resource
    except ImportError:
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + besides
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        _log.warning("open_files_limited", files=allowed, wanted=wanted)
    return allowed - min(besides, allowed // 4)
