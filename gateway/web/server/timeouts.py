"""Timeouts of one connection: slow senders, slow readers, revoked keys. Pure: the time is passed in."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

# Maximum bytes at once, and bytes a second, that a client's WebSocket may send. It sends feature flags and pings.
SOCKET_BURST = 4 * 1024 * 1024
SOCKET_RATE = 64 * 1024
# Grace period before a connection with a revoked key closes, because the answer in flight may confirm the revocation.
BARRED_SECONDS = 2.0


class Phase(Enum):
    """Phase of a connection: new, idle between requests, reading a head, or answering a request."""

    NEW = auto()
    IDLE = auto()
    HEAD = auto()
    BUSY = auto()


class Limits(Protocol):
    """The settings of timeouts, in seconds and bytes a second (`gateway.settings.ServerSettings`)."""

    @property
    def header_timeout(self) -> float: ...
    @property
    def body_timeout(self) -> float: ...
    @property
    def body_rate(self) -> int: ...
    @property
    def send_timeout(self) -> float: ...


class ConnectionTimeouts:
    """The timeouts of one connection. Times are monotonic seconds.

    `since`: the phase began. `stalled_since`: the peer ceased to read. `leaving_since`: the gateway began to close the
    connection. `barred_since`: the key was first seen to be invalid. `received`: the bytes received so far.
    """

    __slots__ = ("_level", "_mark", "_mark_bytes", "barred_since", "is_upgrade", "leaving_since", "phase", "received",
                 "since", "stalled_since")  # fmt: skip

    def __init__(self, now: float) -> None:
        self.phase = Phase.NEW
        self.since = now
        self.received = 0
        self.stalled_since: float | None = None
        self.leaving_since: float | None = None
        self.barred_since: float | None = None
        self.is_upgrade = False
        self._mark = now
        self._mark_bytes = 0
        self._level = 0.0

    @property
    def is_waiting(self) -> bool:
        """Return True if the connection answers no request, and its peer reads all that was written."""
        return self.phase is not Phase.BUSY and self.stalled_since is None

    def is_spare(self, now: float, seconds: float) -> bool:
        """Return True if the last request was answered, and read, more than so many seconds ago."""
        return self.phase is Phase.IDLE and self.stalled_since is None and now - self.since > seconds

    def made(self, now: float) -> None:
        """Note that the connection is open: the time for its first request begins."""
        self.since = now

    def first_byte(self, now: float) -> None:
        """Note the first byte of a further request."""
        self.phase, self.since = Phase.HEAD, now

    def began(self, now: float, *, is_upgrade: bool) -> None:
        """Note that a request's headers are read: the gateway answers it from now on."""
        self.phase, self.since, self.is_upgrade = Phase.BUSY, now, is_upgrade
        self._mark, self._mark_bytes = now, self.received

    def ended(self, now: float) -> None:
        """Note that the request is answered."""
        self.phase, self.since = Phase.IDLE, now

    def overdue(
        self, now: float, limits: Limits, *, reads_body: bool, is_read: bool, is_let_in: bool = True
    ) -> str | None:
        """Return the reason to end the connection: ``header``, ``body``, ``send``, ``flood`` or ``key``; else None.

        Args:
            now: the time.
            limits: the timeouts.
            reads_body: True if some of the request's body has still to come.
            is_read: True if the gateway reads from the connection; while it does not, the client is not to blame.
            is_let_in: True if the key of the last request is still valid, or that request needed none.
        """
        if is_let_in:
            self.barred_since = None
        else:
            self.barred_since = now if self.barred_since is None else self.barred_since
            if now - self.barred_since > BARRED_SECONDS:
                return "key"
        if self.leaving_since is not None:
            return "send" if now - self.leaving_since > limits.send_timeout else None
        if self.stalled_since is not None:
            return "send" if now - self.stalled_since > limits.send_timeout else None
        if self.phase in (Phase.NEW, Phase.HEAD):
            return "header" if now - self.since > limits.header_timeout else None
        if self.phase is Phase.BUSY and self.is_upgrade:
            return self._flood(now)
        if self.phase is Phase.BUSY and reads_body:
            return self._body(now, limits, is_read)
        return None

    def _body(self, now: float, limits: Limits, is_read: bool) -> str | None:
        if is_read and now - self._mark < limits.body_timeout:
            return None
        brought, seconds = self.received - self._mark_bytes, now - self._mark
        self._mark, self._mark_bytes = now, self.received
        return "body" if is_read and brought < limits.body_rate * seconds else None

    def _flood(self, now: float) -> str | None:
        brought, seconds = self.received - self._mark_bytes, now - self._mark
        self._mark, self._mark_bytes = now, self.received
        self._level = max(0.0, self._level + brought - SOCKET_RATE * seconds)
        return "flood" if self._level > SOCKET_BURST else None
