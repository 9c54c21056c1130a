"""What clients send on their WebSockets, counted as it comes. They have flags to declare once, and pings.

aiohttp bounds the size of a message and nothing else: a connection may bring frames as fast as it can, each of which
costs time. So each socket has a budget of bytes, and so have all sockets of a tenant together. Each message costs some
more than its bytes, because an empty one costs time, too. What comes past the budget is not even parsed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.tenants.token_bucket import TokenBucket

# What a message costs beside its bytes.
MESSAGE_COST = 256
# All sockets of a tenant may send so many times as much as one.
TENANT_FACTOR = 16


class Budget:
    """What a socket may send still."""

    def __init__(self, rate: int, burst: int, tenant: TokenBucket) -> None:
        self._own = TokenBucket.full(rate, burst, time.monotonic())
        self._tenant = tenant

    def take(self, count: int) -> bool:
        """Take so many bytes; False if there are not so many."""
        now = time.monotonic()
        return self._own.take(now, count) and self._tenant.take(now, count)


def tenant_bucket(rate: int, burst: int) -> TokenBucket:
    """Return the budget of all sockets of a tenant."""
    return TokenBucket.full(rate * TENANT_FACTOR, burst * TENANT_FACTOR, time.monotonic())


class Intake:
    """Stands before aiohttp's reader of one socket.

    Args:
        refuse: called once, when more comes than may; from then on nothing is read.
    """

    def __init__(self, reader: Any, budget: Budget, refuse: Callable[[], None]) -> None:
        self._reader = reader
        self._budget = budget
        self._refuse = refuse
        self._is_refusing = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes came."""
        if self._is_refusing:
            return False, b""
        if not self._budget.take(len(data)):
            self.refuse()
            return False, b""
        fed: tuple[bool, bytes] = self._reader.feed_data(data)
        return fed

    def feed_eof(self) -> None:
        """Nothing more will come."""
        self._reader.feed_eof()

    def message(self) -> bool:
        """A message was read. False if it is one too many."""
        if self._is_refusing:
            return False
        if not self._budget.take(MESSAGE_COST):
            self.refuse()
        return not self._is_refusing

    def refuse(self) -> None:
        """Read nothing more."""
        self._is_refusing = True
        self._refuse()


def install(
    request: web.BaseRequest, response: web.WebSocketResponse, budget: Budget, refuse: Callable[[], None]
) -> Intake:
    """Put an intake before a response's reader. aiohttp has no seam for it, so its protocol's own field is set."""
    protocol: Any = request.protocol
    intake = Intake(response._parser, budget, refuse)
    protocol._payload_parser = intake
    return intake
