"""Yardsticks that no gateway can be: greedy with known times, and bounds that no schedule can pass."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate

from benchmarks.routing.traces import Arrival, Fleet
from gateway.jobs.routing.snapshot import Choice, Snapshot


def greedy(trace: Sequence[Arrival], fleet: Fleet) -> tuple[float, int]:
    """Bind each job as it comes to the backend where it ends first, if all times are known. Return mean and loads.

    Backends keep the last prompt's model.
    """
    free = [0.0] * len(fleet.speeds)
    last = [""] * len(fleet.speeds)
    loads, whole = 0, 0.0
    for each in trace:
        ends = [
            max(each.at, free[b]) + fleet.load_seconds * (last[b] != each.kind.model) + each.seconds / speed
            for b, speed in enumerate(fleet.speeds)
        ]
        best = min(range(len(ends)), key=ends.__getitem__)
        loads += last[best] != each.kind.model
        free[best], last[best] = ends[best], each.kind.model
        whole += ends[best] - each.at
    return whole / len(trace), loads


def mean_bound(trace: Sequence[Arrival], fleet: Fleet) -> float:
    """Return a mean time to done that no schedule can pass.

    The jobs run on one GPU as fast as all together, the one with the least work left first, without loads.
    """
    speed, now, whole = sum(fleet.best_speeds), 0.0, 0.0
    left: list[tuple[float, float]] = []
    jobs = [(each.at, each.seconds) for each in trace] + [(float("inf"), 0.0)]
    for at, seconds in jobs:
        while left and now + left[0][0] / speed <= at:
            rest, came = heapq.heappop(left)
            now += rest / speed
            whole += now - came
        if left:
            rest, came = left[0]
            heapq.heapreplace(left, (rest - (at - now) * speed, came))
        now = at
        if seconds:
            heapq.heappush(left, (seconds, at))
    fastest = sum(each.seconds for each in trace) / max(fleet.best_speeds)
    return max(whole, fastest) / len(trace)


def end_bound(trace: Sequence[Arrival], fleet: Fleet) -> float:
    """Return the earliest time, from the first arrival on, at which any schedule can have ended all jobs."""
    later = list(accumulate((each.seconds for each in reversed(trace)), initial=0.0))[:0:-1]
    by_work = max(each.at + work / sum(fleet.best_speeds) for each, work in zip(trace, later, strict=True))
    return max(by_work, max(each.at + each.seconds / max(fleet.best_speeds) for each in trace)) - trace[0].at


class LateBinding:
    """Sketch: start the job with the lowest end less waiting time, unless another backend would end it sooner."""

    binds_late = True

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the best pair of a head and an open backend."""
        best: tuple[float, Choice] | None = None
        for head in snapshot.heads:
            model = head.work.signature.model
            ends = {}
            for view in snapshot.board.views.values():
                load = 0.0 if model in view.held else snapshot.costs.load_seconds(model, view.name)
                ends[view.name] = max(view.ends_at - snapshot.now, 0.0) + load
                usual, factor = snapshot.costs.usual_seconds(head.work), snapshot.costs.factor(model, view.name)
                ends[view.name] += usual * factor
            name = min(ends, key=ends.__getitem__)
            if snapshot.board.views[name].slots > 0:
                key = ends[name] - (snapshot.now - head.since)
                if best is None or key < best[0]:
                    best = key, Choice(head, name)
        return best[1] if best else None
