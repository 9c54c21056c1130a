"""Fair share of GPU seconds among tenants: start-time fair queueing by expected seconds, corrected by the real ones.

Each tenant has a clock: the GPU seconds that it got, divided by its weight. The tenant whose clock is the lowest is
next. A tenant that had nothing to run starts at the clock of those that wait, so that idleness earns no credit. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

# Clocks of tenants that have nothing in the gateway; the oldest are forgotten.
MAX_IDLE = 10_000
# A waiting tenant keeps so many seconds of what it got less than others, divided by its weight. So a tenant that could
# not run for long, because its backends were down, does not keep the others waiting for as long afterwards.
MAX_LAG = 120.0
MIN_WEIGHT = 1e-6


def _one(_tenant: str) -> float:
    return 1.0


class Shares:
    """Clocks of all tenants.

    Attributes:
        weight: returns a tenant's weight.
    """

    def __init__(self, weight: Callable[[str], float] = _one) -> None:
        self.weight = weight
        self._clocks: dict[str, float] = {}
        self._served: dict[str, int] = {}
        self._entries: dict[str, tuple[float, float, str]] = {}
        self._waiting: list[tuple[float, float, str]] = []
        self._count = 0
        # The highest clock at which a job was sent.
        self._now = 0.0

    def waits(self, tenant: str) -> None:
        """Note that a tenant has a waiting job from now on. If it has one already, change nothing."""
        if tenant not in self._entries:
            self._set(tenant, self._clock(tenant))
            self._enter(tenant)

    def waits_no_more(self, tenant: str) -> None:
        """Note that a tenant has no waiting job any more. If it had none, change nothing."""
        self._leave(tenant)
        self._forget()

    def charge(self, tenant: str, seconds: float) -> None:
        """Charge a tenant for a job that is sent, by its expected seconds."""
        start = self._clock(tenant)
        self._now = max(self._now, start)
        self._count += 1
        self._served[tenant] = self._count
        self._move(tenant, start + self.scaled(tenant, seconds))
        self._forget()

    def adjust(self, tenant: str, seconds: float) -> None:
        """Charge a tenant `seconds` more for a job that was sent before; less if negative."""
        if tenant in self._clocks:
            self._move(tenant, self._clocks[tenant] + self.scaled(tenant, seconds))

    def turn(self, tenant: str) -> tuple[float, float]:
        """Return the turn of a tenant's next job; the lowest turn is next.

        A turn is a clock, and the tenant's order among equal clocks. Tenants that got less than the last one that was
        served share one order: among them the first to come is first.
        """
        clock = self._clock(tenant)
        return clock, self._served.get(tenant, math.inf) if clock > self._now else math.inf

    def scaled(self, tenant: str, seconds: float) -> float:
        """Return how far a job of so many seconds moves a tenant's clock."""
        return seconds / max(self.weight(tenant), MIN_WEIGHT)

    def in_order(self) -> Iterator[tuple[str, float]]:
        """Yield the tenants with waiting jobs, the next first, each with its lead over the next one."""
        if not self._waiting:
            return
        floor = self._now - MAX_LAG
        first = max(self._waiting[0][0], floor)
        for clock, _, tenant in self._waiting:
            yield tenant, max(clock, floor) - first

    def lead(self, tenant: str) -> float:
        """Return a tenant's lead over the tenant that is next."""
        return self._clock(tenant) - self._first() if self._waiting else 0.0

    def relative_weight(self, tenant: str, other: str) -> float:
        """Return a tenant's weight over another's."""
        return self.weight(tenant) / max(self.weight(other), MIN_WEIGHT)

    def rest(self) -> None:
        """Forget all clocks, because no tenant has a job, so that nothing is left to share."""
        self._clocks.clear()
        self._served.clear()
        self._entries.clear()
        self._waiting.clear()
        self._now = 0.0

    def _first(self) -> float:
        return max(self._waiting[0][0], self._now - MAX_LAG)

    def _clock(self, tenant: str) -> float:
        """Return a tenant's clock now: less than the others' by no more than it may be."""
        clock = self._clocks.get(tenant, 0.0)
        if tenant in self._entries:
            return max(clock, self._now - MAX_LAG)
        return max(clock, min(self._now, self._first()) if self._waiting else self._now)

    def _move(self, tenant: str, clock: float) -> None:
        is_waiting = tenant in self._entries
        self._leave(tenant)
        self._set(tenant, clock)
        if is_waiting:
            self._enter(tenant)

    def _forget(self) -> None:
        """Forget tenants that don't wait, past the maximum, the ones that came longest ago first."""
        while len(self._clocks) - len(self._waiting) > MAX_IDLE:
            idle = next(name for name in self._clocks if name not in self._entries)
            del self._clocks[idle]
            self._served.pop(idle, None)

    def _set(self, tenant: str, clock: float) -> None:
        self._clocks.pop(tenant, None)
        self._clocks[tenant] = clock

    def _enter(self, tenant: str) -> None:
        entry = self._entries[tenant] = (self._clocks[tenant], self._served.get(tenant, math.inf), tenant)
        insort(self._waiting, entry)

    def _leave(self, tenant: str) -> None:
        entry = self._entries.pop(tenant, None)
        if entry is not None:
            del self._waiting[bisect_left(self._waiting, entry)]
