"""Arrivals of jobs: the gaps between them tell if more jobs will come before the waiting ones are done. Pure."""

from __future__ import annotations

import math

# Shorter gaps tell nothing; longer ones are counted by powers of two, up to a day.
MIN_GAP = 16.0
BUCKETS = 13
MAX_GAP = MIN_GAP * 2.0**BUCKETS
# A gap of before counts for so much once another one was seen.
KEPT = 0.9


class Arrivals:
    """Gaps between arrivals, by length, the newest ones above all. `last` is the time of the last arrival."""

    def __init__(self) -> None:
        self.last = -math.inf
        self._gaps = [0.0] * BUCKETS

    def arrived(self, now: float) -> None:
        """Note that a job came."""
        gap = now - self.last
        self.last = now
        if MIN_GAP <= gap < math.inf:
            self._gaps = [KEPT * each for each in self._gaps]
            self._gaps[min(int(math.log2(gap / MIN_GAP)), BUCKETS - 1)] += 1.0

    def expects_more(self, now: float, seconds: float) -> bool:
        """Return True if, of the gaps that were as long as this one is already, half ended within some seconds more."""
        quiet = max(now - self.last, 0.0)
        longer = self._after(quiet)
        return longer > 0.0 and self._after(quiet + seconds) <= 0.5 * longer

    def _after(self, gap: float) -> float:
        """Return the weight of the gaps that were longer; in its own bucket, all lengths are equally likely."""
        place = math.log2(min(max(gap, MIN_GAP), MAX_GAP) / MIN_GAP)
        own = int(place)
        if own >= BUCKETS:
            return 0.0
        return self._gaps[own] * (1.0 - (place - own)) + sum(self._gaps[own + 1 :])
