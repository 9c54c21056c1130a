"""Buffers of frames for slow readers, of all sockets together. Pure.

Each socket has its own bound (`outbox.py`), each tenant one for all of its sockets, and all tenants one together. Past
these, the socket that holds most makes room: it leaves out what its newest frames say as well or, where that is too
little, is closed. If all tenants hold too much together, it is one of the tenant that holds most.
"""

from __future__ import annotations

from typing import Protocol

# Messages of this size count once for a tenant, however many of its sockets hold them: a preview goes to all sockets of
# a session. To count smaller ones so would cost more than it tells.
LARGE = 16 * 1024
# A socket's bytes are counted anew when they have changed by so much.
SLACK = 2048


class Holder(Protocol):
    """A socket, as `Buffers` sees it."""

    @property
    def held(self) -> int:
        """Bytes that wait for its reader, those it shares with others too."""

    @property
    def is_closing(self) -> bool:
        """Whether it takes nothing more."""

    def thin(self) -> bool:
        """Leave out what can be; return True if that is half of it at least."""

    def give_up(self) -> None:
        """Close it, and drop what waits."""


class Total:
    """Bytes that wait for all tenants together."""

    def __init__(self) -> None:
        self.bytes = 0


class Shared:
    """The large messages that one tenant's sockets hold, each counted once."""

    def __init__(self, total: Total) -> None:
        self._total = total
        self._holders: dict[int, int] = {}
        self.bytes = 0

    def add(self, message: object, size: int) -> None:
        """One more socket holds a message of so many bytes."""
        count = self._holders.get(id(message), 0)
        if not count:
            self.bytes += size
            self._total.bytes += size
        self._holders[id(message)] = count + 1

    def remove(self, message: object, size: int) -> None:
        """One socket less does."""
        count = self._holders[id(message)] - 1
        if count:
            self._holders[id(message)] = count
        else:
            del self._holders[id(message)]
            self.bytes -= size
            self._total.bytes -= size


class TenantBuffers:
    """What waits for one tenant's sockets. `holders` are these, each with its own bytes when they were counted."""

    def __init__(self, total: Total) -> None:
        self.holders: dict[Holder, int] = {}
        self.shared = Shared(total)
        self.own = 0

    @property
    def bytes(self) -> int:
        """Bytes of all of it."""
        return self.own + self.shared.bytes


class Buffers:
    """What waits for all sockets.

    Args:
        per_tenant: bytes that may wait for one tenant's sockets.
        in_all: bytes that may wait for all.
    """

    def __init__(self, per_tenant: int, in_all: int) -> None:
        self._per_tenant = per_tenant
        self._in_all = in_all
        self._tenants: dict[str, TenantBuffers] = {}
        self._total = Total()
        self._makes_room = False

    @property
    def bytes(self) -> int:
        """Bytes of all that waits."""
        return self._total.bytes

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._tenants

    def join(self, tenant: str, holder: Holder) -> TenantBuffers:
        """A socket is open."""
        buffers = self._tenants.setdefault(tenant, TenantBuffers(self._total))
        buffers.holders[holder] = 0
        return buffers

    def leave(self, tenant: str, holder: Holder) -> None:
        """A socket is gone, and holds nothing."""
        buffers = self._tenants[tenant]
        own = buffers.holders.pop(holder)
        buffers.own -= own
        self._total.bytes -= own
        if not buffers.holders:
            del self._tenants[tenant]

    def count(self, buffers: TenantBuffers, holder: Holder, own: int) -> None:
        """A socket holds so many bytes of its own now, beside the large messages. Too many in all make room."""
        change = own - buffers.holders[holder]
        if change > SLACK or change < -SLACK:
            buffers.holders[holder] = own
            buffers.own += change
            self._total.bytes += change
        if buffers.own + buffers.shared.bytes > self._per_tenant or self._total.bytes > self._in_all:
            self._make_room(buffers)

    def _make_room(self, buffers: TenantBuffers) -> None:
        # To close a socket changes what it holds, which is counted, too.
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
        """Have the socket that holds most make room. False if there is none."""
        open_ones = (each for each in buffers.holders if not each.is_closing)
        holder = max(open_ones, key=lambda each: each.held, default=None)
        if holder is None:
            return False
        if not holder.thin():
            holder.give_up()
        return True
