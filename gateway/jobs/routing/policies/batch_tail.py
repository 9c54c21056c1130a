"""End of a batch: the long jobs that have to start now, or else the whole batch ends later.

Short jobs first is best for the mean, but then the long ones are left at the end, a few on each GPU, and the last GPU
runs alone. So if nothing has come for a while, and nothing is likely to come soon, the policy compares two times: until
all waiting work is done if it spreads evenly, and until the longest jobs are done if they start now. If the second is
not lower, they start.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

from gateway.jobs.routing.capacity import spread_evenly
from gateway.jobs.routing.snapshot import Head, Snapshot

# Nothing has come for so many seconds, and for this part of the time that the waiting work takes.
QUIET_SECONDS, QUIET_PART = 30.0, 0.25
# The longest jobs start if they take at least this part of the time that all takes.
CRITICAL = 1.0
# More jobs than these are no end of a batch.
MAX_LONGEST = 64


def critical_head(snapshot: Snapshot) -> Head | None:
    """Return the head of the longest jobs if they have to start now; else None.

    A tenant that got more than another gets no such precedence, and jobs that only some backends can run don't count.
    """
    heads, arrivals = snapshot.batch, snapshot.arrivals
    if arrivals is None or len(heads) < 2:
        return None
    quiet = snapshot.now - arrivals.last
    if quiet < QUIET_SECONDS or any(head.able is not None for head in heads):
        return None
    costs = snapshot.costs
    seconds = [costs.usual_seconds(head.work) for head in heads]
    size = max(seconds)
    longest = heads[seconds.index(size)]
    if longest.lead > 0 or longest.jobs > MAX_LONGEST:
        return None
    views = snapshot.board.views.values()
    ready = [max(view.ends_at - snapshot.now, 0.0) for view in views]
    work = sum(head.jobs * each for head, each in zip(heads, seconds, strict=True))
    evenly = spread_evenly(work, ready, [1.0 / view.factor for view in views])
    if quiet < QUIET_PART * evenly or arrivals.expects_more(snapshot.now, evenly):
        return None
    model = longest.work.signature.model
    runs = [size * costs.factor(model, view.name) for view in views]
    return longest if _one_by_one(longest.jobs, ready, runs) >= CRITICAL * evenly else None


def _one_by_one(jobs: int, ready: Sequence[float], runs: Sequence[float]) -> float:
    """Return the time at which the last of equal jobs ends, if each goes where it ends first."""
    ends = [(at + run, run) for at, run in zip(ready, runs, strict=True)]
    heapify(ends)
    last = 0.0
    for _ in range(jobs):
        end, run = ends[0]
        last = max(last, end)
        heapreplace(ends, (end + run, run))
    return last
