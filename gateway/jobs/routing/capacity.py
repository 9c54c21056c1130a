"""Capacity of backends over time: when have they done some work, if all share it as soon as they are ready? Pure.

It is made once for many questions, each of which takes a bisection.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

# A backend counts as ready if it is so by these seconds later.
MARGIN = 0.001


class Capacity:
    """Capacity of some backends.

    Args:
        ready: the seconds until each has ended what it has.
        speeds: the speed of each; 1 is usual.
        jobs: the number of jobs that they have.
    """

    def __init__(self, ready: Sequence[float], speeds: Sequence[float], jobs: int = 0) -> None:
        self.jobs = jobs
        order = sorted(range(len(ready)), key=ready.__getitem__)
        self._ready = [ready[each] for each in order]
        # Of the first one, the first two, and so on: their speed, and the work that they have done when the last of
        # them gets ready.
        self._speeds: list[float] = []
        self._done: list[float] = []
        speed = done = at = 0.0
        for each in order:
            done += speed * (ready[each] - at)
            at, speed = ready[each], speed + speeds[each]
            self._speeds.append(speed)
            self._done.append(done)

    def __len__(self) -> int:
        return len(self._ready)

    def ends(self, work: float) -> float:
        """Return the seconds after which the work is done. There must be a backend."""
        last = max(bisect_left(self._done, work) - 1, 0)
        return self._ready[last] + max(work - self._done[last], 0.0) / self._speeds[last]

    def speed_at(self, seconds: float) -> float:
        """Return the mean speed of the backends that are ready after some seconds. There must be a backend."""
        count = max(bisect_right(self._ready, seconds + MARGIN), 1)
        return self._speeds[count - 1] / count


def spread_evenly(work: float, ready: Sequence[float], speeds: Sequence[float]) -> float:
    """Return the same as `Capacity.ends`, faster for a single question."""
    order = sorted(range(len(ready)), key=ready.__getitem__)
    speed = done = ends = 0.0
    for place, at in enumerate(order):
        speed += speeds[at]
        done += speeds[at] * ready[at]
        ends = (work + done) / speed
        if place + 1 < len(order) and ends <= ready[order[place + 1]]:
            break
    return ends
