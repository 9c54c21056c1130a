"""Bounds of the bytes that wait for slow readers, of all sockets together. Pure.

Each socket has its own bound (`outbox.py`), each tenant one for all of its sockets, and all tenants one together. Past
a bound, the socket that holds most makes room: it drops frames that newer ones replace. If that frees too little, the
socket is closed. If all tenants together hold too much, a socket of the tenant that holds most makes room.
"""

from __future__ import annotations

from typing import Protocol

# Messages from this size on count once for a tenant, because all sockets of a session hold the same preview. To count
# smaller messages so would cost too much.
LARGE = 16 * 1024
# A socket's bytes are counted anew when they have changed by more than this.
SLACK = 2048


class BufferedSocket(Protocol):
    """Socket, as `Buffers` sees it."""

    @property
    def held(self) -> int:
        """Return the bytes that wait for the socket's reader, including shared messages."""

    @property
    def is_closing(self) -> bool:
        """Return True if the socket takes no more frames."""

    def thin(self) -> bool:
        """Drop all frames that may be dropped. Return True if that frees at least half of the bytes."""

    def give_up(self) -> None:
        """Close the socket, and drop its waiting frames."""


class Total:
    """Count of the bytes that wait for all tenants together."""

    def __init__(self) -> None:
        self.bytes = 0


class Shared:
    """Count of the large messages that one tenant's sockets hold, each counted once."""

    def __init__(self, total: Total) -> None:
        self._total = total
        self._holders: dict[int, int] = {}
        self.bytes = 0

    def add(self, message: object, size: int) -> None:
        """Note that one more socket holds a message of `size` bytes."""
        count = self._holders.get(id(message), 0)
        if not count:
            self.bytes += size
            self._total.bytes += size
        self._holders[id(message)] = count + 1

    def remove(self, message: object, size: int) -> None:
        """Note that one socket less holds a message."""
        count = self._holders[id(message)] - 1
        if count:
            self._holders[id(message)] = count
        else:
            del self._holders[id(message)]
            self.bytes -= size
            self._total.bytes -= size


class TenantBuffers:
    """Count of the bytes that wait for one tenant's sockets. `holders` has each socket's own bytes, as last counted."""

    def __init__(self, total: Total) -> None:
        self.holders: dict[BufferedSocket, int] = {}
        self.shared = Shared(total)
        self.own = 0

    @property
    def bytes(self) -> int:
        """Return the bytes that wait for the tenant's sockets, shared ones included."""
        return self.own + self.shared.bytes


class Buffers:
    """Count and bound of the bytes that wait for all sockets.

    Args:
        per_tenant: maximum bytes that wait for one tenant's sockets.
        in_all: maximum bytes that wait for all sockets.
    """

    def __init__(self, per_tenant: int, in_all: int) -> None:
        self._per_tenant = per_tenant
        self._in_all = in_all
        self._tenants: dict[str, TenantBuffers] = {}
        self._total = Total()
        self._makes_room = False

    @property
    def bytes(self) -> int:
        """Return the bytes that wait for all sockets."""
        return self._total.bytes

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._tenants

    def join(self, tenant: str, holder: BufferedSocket) -> TenantBuffers:
        """Add an open socket. Return the buffers of its tenant."""
        buffers = self._tenants.setdefault(tenant, TenantBuffers(self._total))
        buffers.holders[holder] = 0
        return buffers

    def leave(self, tenant: str, holder: BufferedSocket) -> None:
        """Remove a socket that is closed and holds no frames."""
        buffers = self._tenants[tenant]
        own = buffers.holders.pop(holder)
        buffers.own -= own
        self._total.bytes -= own
        if not buffers.holders:
            del self._tenants[tenant]

    def count(self, buffers: TenantBuffers, holder: BufferedSocket, own: int) -> None:
        """Count the bytes of a socket's own, without large messages. Make room if a bound is passed."""
        change = own - buffers.holders[holder]
        if change > SLACK or change < -SLACK:
            buffers.holders[holder] = own
            buffers.own += change
            self._total.bytes += change
        if buffers.own + buffers.shared.bytes > self._per_tenant or self._total.bytes > self._in_all:
            self._make_room(buffers)

    def _make_room(self, buffers: TenantBuffers) -> None:
        # Return if called by itself, because closing a socket changes its bytes, which are counted, too.
        if self._makes_room:
            return
        self._makes_room = True
        try:
            while buffers.bytes > self._per_tenant and self._free_some(buffers):
                pass
            while self._total.bytes > self._in_all:
                if not self._free_some(max(self._tenants.values(), key=lambda each: each.bytes)):
                    return
        finally:
            self._makes_room = False

    def _free_some(self, buffers: TenantBuffers) -> bool:
        """Let the tenant's socket that holds most make room. Return False if no socket is open."""
        open_ones = (each for each in buffers.holders if not each.is_closing)
        holder = max(open_ones, key=lambda each: each.held, default=None)
        if holder is None:
            return False
        if not holder.thin():
            holder.give_up()
        return True
