"""Connections to receivers, each to an address that was checked for the very attempt that uses it.

A connection stays open for a few seconds, because a handshake of TLS takes more time than a delivery. The next attempt
looks its host up and checks the addresses all the same. It gets the connection if it is the same tenant's, for the same
scheme, host and port, and if the addresses are the same: then it is one of those that this attempt may connect to.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from gateway.telemetry.tasks import Tasks
from gateway.webhooks.addresses import Address, parsed
from gateway.webhooks.receivers import Receiver

# Bytes of an answer that are held at a time.
MAX_ANSWER = 16 * 1024
# Bytes that a receiver may send for one request, heads before the answer's own (100 Continue) included.
MAX_RECEIVED = 4 * MAX_ANSWER
# Bounds of an answer's head: bytes of a line, and lines.
_MAX_LINE = 8_190
_MAX_LINES = 64
# Seconds for which a connection without a delivery stays open, and how many do.
IDLE_SECONDS = 10.0
MAX_IDLE = 64
# Seconds after which a connection that is always in use is replaced, because its certificate was verified at its start.
MAX_AGE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Key:
    """Everything that must be equal for a connection to be used again."""

    tenant: str
    origin: URL
    addresses: frozenset[Address]


class Client:
    """HTTP client that connects to checked addresses alone, and has one connection at most.

    Attributes:
        is_used: True if it has made an attempt, so that its connection may be one that the receiver has closed.
    """

    def __init__(self, key: _Key, addresses: tuple[Address, ...], tls: ssl.SSLContext, connect_timeout: float) -> None:
        self.key = key
        self.is_used = False
        self.idle_since = 0.0
        self._made_at = asyncio.get_running_loop().time()
        self._sockets = _Sockets(addresses)
        self._expected = _Expected()
        connector = aiohttp.TCPConnector(
            resolver=_Checked(addresses),
            use_dns_cache=False,
            keepalive_timeout=2 * IDLE_SECONDS,
            limit=1,
            ssl=tls,
            socket_factory=self._sockets.open,
        )
        connector._factory = lambda: _Connection(self._expected)  # type: ignore[assignment]
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, ceil_threshold=math.inf),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=MAX_ANSWER,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_LINES,
        )

    async def post(self, url: URL, headers: dict[str, str], body: bytes) -> aiohttp.ClientResponse:
        """Send a request, and read the answer's head.

        Raises:
            aiohttp.ClientError, OSError, ValueError: no answer came, or none that is HTTP.
        """
        self._expected.count = MAX_RECEIVED
        return await self._session.post(url, data=body, headers=headers, allow_redirects=False)

    def rest(self, now: float) -> bool:
        """Expect nothing more of the receiver. Return False if the connection can't be used again."""
        self.is_used, self.idle_since, self._expected.count = True, now, 0
        return now - self._made_at < MAX_AGE_SECONDS and not self._expected.has_more

    async def close(self) -> None:
        """End the connection now, because a receiver may leave the end of TLS unanswered for long."""
        try:
            await self._session.close()
        finally:
            self._sockets.shut()


class Clients:
    """Clients that wait for the next delivery to their receiver.

    Args:
        tls: the context for https.
        connect_timeout: limit for one connection in seconds, TLS included.
    """

    def __init__(self, tls: ssl.SSLContext, connect_timeout: float) -> None:
        self._tls, self._connect_timeout = tls, connect_timeout
        self._idle: dict[_Key, list[Client]] = {}
        # The same, those that wait longest first.
        self._by_age: OrderedDict[Client, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks("webhooks")
        self._is_closed = False

    def take(self, receiver: Receiver, tenant: str, *, anew: bool = False) -> Client:
        """Return a client for one attempt. Pass it to `give_back`, or close it. `anew`: one without a connection."""
        key = _Key(tenant, receiver.url.origin(), frozenset(receiver.addresses))
        waiting = self._idle.get(key)
        if not waiting or anew:
            return Client(key, receiver.addresses, self._tls, self._connect_timeout)
        client = waiting.pop()
        self._forget(client)
        return client

    async def give_back(self, client: Client) -> None:
        """Keep a client whose answer was read to its end."""
        loop = asyncio.get_running_loop()
        if self._is_closed or not client.rest(loop.time()):
            await client.close()
            return
        self._idle.setdefault(client.key, []).append(client)
        self._by_age[client] = None
        if len(self._by_age) > MAX_IDLE:
            self._end(next(iter(self._by_age)))
        if self._timer is None:
            self._timer = loop.call_later(IDLE_SECONDS, self._sweep)

    async def close(self) -> None:
        """Close all that wait, and from now on each that is given back."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for client in list(self._by_age):
            self._end(client)
        await self._tasks.finish(1.0)

    def _sweep(self) -> None:
        self._timer, loop = None, asyncio.get_running_loop()
        while self._by_age and (first := next(iter(self._by_age))).idle_since + IDLE_SECONDS <= loop.time():
            self._end(first)
        if self._by_age:
            first = next(iter(self._by_age))
            self._timer = loop.call_at(first.idle_since + IDLE_SECONDS, self._sweep)

    def _end(self, client: Client) -> None:
        self._idle[client.key].remove(client)
        self._forget(client)
        self._tasks.start(client.close(), client.key.tenant)

    def _forget(self, client: Client) -> None:
        del self._by_age[client]
        if not self._idle[client.key]:
            del self._idle[client.key]


class _Expected:
    """Bytes that a client may still receive for its request: 0 between two requests."""

    def __init__(self) -> None:
        self.count = 0
        self.connection: ResponseHandler | None = None

    @property
    def has_more(self) -> bool:
        """Return True if more has come than the answer, or if nobody counts what comes."""
        return self.connection is None or self.connection.should_close


class _Connection(ResponseHandler):
    """Connection that ends if its receiver sends more than is expected, or anything while nobody asked."""

    def __init__(self, expected: _Expected) -> None:
        super().__init__(asyncio.get_running_loop())
        self._expected = expected
        expected.connection = self

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._expected.count -= len(data)
        if self._expected.count >= 0:
            super().data_received(data)
        elif self.transport is not None:
            self.transport.abort()


class _Checked(AbstractResolver):
    """Resolver that knows the checked addresses alone."""

    def __init__(self, addresses: tuple[Address, ...]) -> None:
        self._addresses = addresses

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002
    ) -> list[ResolveResult]:
        """Return the checked addresses, whatever the host."""
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=_family(address),
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


class _Sockets:
    """Sockets of one client. Each is opened for a checked address, or not at all."""

    def __init__(self, addresses: tuple[Address, ...]) -> None:
        self._addresses = addresses
        self._open: list[socket.socket] = []

    def open(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket for an address. An address in a URL passes no resolver, so this is where all of them pass.

        Raises:
            OSError: the address is not one that was checked.
        """
        family, kind, protocol, _, address = info
        if parsed(str(address[0])) not in self._addresses:
            raise OSError("the address was not checked")
        made = socket.socket(family, kind, protocol)
        # What has come is parsed in one turn of the loop, and a receiver may send heads (100 Continue) without end.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_ANSWER)
        self._open = [each for each in self._open if each.fileno() >= 0]
        self._open.append(made)
        return made

    def shut(self) -> None:
        """End all connections now."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
