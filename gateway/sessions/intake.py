"""Incoming frames of clients' WebSockets, counted as they come. Clients declare flags once, and send pings.

aiohttp bounds the size of a message and nothing else. A client may send frames as fast as it can, and each one costs
time. So each socket has a budget of bytes, and so have all sockets of a tenant together. Each message costs some
more than its bytes, because an empty one costs time, too. Bytes past the budget are not even parsed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gateway.tenants.token_bucket import TokenBucket

# The cost of a frame beside its bytes.
MESSAGE_COST = 256
_MAX_FRAME_HEAD = 14
# All sockets of a tenant together may send this many times as much as one.
TENANT_FACTOR = 16


class Budget:
    """Budget of bytes that a socket may still send."""

    def __init__(self, rate: int, burst: int, tenant: TokenBucket) -> None:
        self._own = TokenBucket.full(rate, burst, time.monotonic())
        self._tenant = tenant
        # The frames that a full budget pays for. Counting stops past them.
        self.max_frames = burst // MESSAGE_COST

    def take(self, count: int) -> bool:
        """Take `count` bytes. Return False if the budget is too small."""
        now = time.monotonic()
        return self._own.take(now, count) and self._tenant.take(now, count)


def tenant_bucket(rate: int, burst: int) -> TokenBucket:
    """Return the budget of all sockets of a tenant."""
    return TokenBucket.full(rate * TENANT_FACTOR, burst * TENANT_FACTOR, time.monotonic())


class FrameCounter:
    """Counter of the frames that a client sends (RFC 6455, section 5.2). Pure.

    It reads the heads of frames alone, so that a frame is counted before it is parsed.
    """

    def __init__(self) -> None:
        self._payload = 0
        self._head = b""

    def count(self, data: bytes, maximum: int) -> int:
        """Return how many frames begin in the next bytes. Stop counting past `maximum`."""
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
    """Filter before aiohttp's reader of one socket.

    Args:
        refuse: called once, when the client sends too much. From then on nothing is read, and `is_refusing` is True.
    """

    def __init__(self, reader: Any, budget: Budget, refuse: Callable[[], None]) -> None:
        self._reader = reader
        self._budget = budget
        self._frames = FrameCounter()
        self._refuse = refuse
        self.is_refusing = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Count received bytes, and pass them on if the budget allows."""
        if self.is_refusing:
            return False, b""
        if not self._budget.take(len(data) + MESSAGE_COST * self._frames.count(data, self._budget.max_frames)):
            self.refuse()
            return False, b""
        fed: tuple[bool, bytes] = self._reader.feed_data(data)
        return fed

    def feed_eof(self) -> None:
        """Pass on the end of the stream."""
        self._reader.feed_eof()

    def refuse(self) -> None:
        """Stop reading, and call `refuse`."""
        self.is_refusing = True
        self._refuse()

    def release(self) -> None:
        """Drop the reference to the socket, because it would keep the connection until garbage is collected."""
        self._refuse = _ignore


def _ignore() -> None:
    """Do nothing, because the socket is served no longer."""


def install(
    request: web.BaseRequest, response: web.WebSocketResponse, budget: Budget, refuse: Callable[[], None]
) -> Intake:
    """Put an intake before a response's reader. Set a private field of aiohttp's protocol, because it has no hook."""
    protocol: Any = request.protocol
    intake = Intake(response._parser, budget, refuse)
    protocol._payload_parser = intake
    return intake
