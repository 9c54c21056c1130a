"""Incoming frames of clients' WebSockets, counted as they come. Clients declare flags once, and send pings.

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

# What a frame costs beside its bytes.
MESSAGE_COST = 256
_MAX_FRAME_HEAD = 14
# All sockets of a tenant may send so many times as much as one.
TENANT_FACTOR = 16


class Budget:
    """What a socket may send still."""

    def __init__(self, rate: int, burst: int, tenant: TokenBucket) -> None:
        self._own = TokenBucket.full(rate, burst, time.monotonic())
        self._tenant = tenant
        # The frames that a full budget pays for: more need not be counted.
        self.max_frames = burst // MESSAGE_COST

    def take(self, count: int) -> bool:
        """Take so many bytes; False if there are not so many."""
        now = time.monotonic()
        return self._own.take(now, count) and self._tenant.take(now, count)


def tenant_bucket(rate: int, burst: int) -> TokenBucket:
    """Return the budget of all sockets of a tenant."""
    return TokenBucket.full(rate * TENANT_FACTOR, burst * TENANT_FACTOR, time.monotonic())


class FrameCounter:
    """Counter of the frames that a client sends (RFC 6455, section 5.2). Pure.

    It looks at the heads of frames alone, so a frame is counted before anything is made of it.
    """

    def __init__(self) -> None:
        self._payload = 0
        self._head = b""

    def count(self, data: bytes, maximum: int) -> int:
        """Return how many frames begin in the next bytes. It stops counting beyond `maximum`."""
        frames = at = 0
        while at < len(data) and frames <= maximum:
            if self._payload:
                step = min(self._payload, len(data) - at)
                self._payload -= step
                at += step
                continue
            head = self._head + data[at : at + _MAX_FRAME_HEAD - len(self._head)]
            size = _head_size(head)
            if len(head) < size:
                self._head = head
                break
            at += size - len(self._head)
            self._head = b""
            self._payload = _payload_size(head)
            frames += 1
        return frames


def _head_size(head: bytes) -> int:
    if len(head) < 2:
        return 2
    short = head[1] & 0x7F
    return 2 + (2 if short == 126 else 8 if short == 127 else 0) + (4 if head[1] & 0x80 else 0)


def _payload_size(head: bytes) -> int:
    short = head[1] & 0x7F
    if short < 126:
        return short
    return int.from_bytes(head[2 : 4 if short == 126 else 10], "big")


class Intake:
    """Stands before aiohttp's reader of one socket.

    Args:
        refuse: called once, when more comes than may; from then on nothing is read, and `is_refusing` is true.
    """

    def __init__(self, reader: Any, budget: Budget, refuse: Callable[[], None]) -> None:
        self._reader = reader
        self._budget = budget
        self._frames = FrameCounter()
        self._refuse = refuse
        self.is_refusing = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes came."""
        if self.is_refusing:
            return False, b""
        if not self._budget.take(len(data) + MESSAGE_COST * self._frames.count(data, self._budget.max_frames)):
            self.refuse()
            return False, b""
        fed: tuple[bool, bytes] = self._reader.feed_data(data)
        return fed

    def feed_eof(self) -> None:
        """Nothing more will come."""
        self._reader.feed_eof()

    def refuse(self) -> None:
        """Read nothing more."""
        self.is_refusing = True
        self._refuse()

    def release(self) -> None:
        """Hold the socket no more: with it, the whole connection would stay until a collection of garbage."""
        self._refuse = _ignore


def _ignore() -> None:
    """Do nothing, because the socket is served no longer."""


def install(
    request: web.BaseRequest, response: web.WebSocketResponse, budget: Budget, refuse: Callable[[], None]
) -> Intake:
    """Put an intake before a response's reader. aiohttp has no seam for it, so its protocol's own field is set."""
    protocol: Any = request.protocol
    intake = Intake(response._parser, budget, refuse)
    protocol._payload_parser = intake
    return intake
