"""Least work: jobs wait in the gateway, and each goes where it ends first, as far as is known.

A decision is a short plan. Of all heads, the one whose job would end first is planned first, on the backend where it
ends first. The end includes the rest of what the backend has, the load of a model that is not in memory, and a charge
for the model that this load pushes out. If that backend has no open slot, the plan keeps the backend for this job, and
goes on with the next head. The first job planned for an open slot is sent. So short jobs go first, a job waits for a
fast or warm backend if it ends sooner there, and an idle backend stays idle only if no job would end sooner on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from operator import attrgetter

from gateway.jobs.routing.policies.batch_tail import critical_head
from gateway.jobs.routing.snapshot import Choice, Competitors, Costs, Head, Snapshot

# A second of waiting counts as so many seconds of an earlier end, so that no job is overtaken for ever.
AGEING = 0.1
# A load that pushes out a model costs in addition so many times that model's load time.
PUSHED_OUT = 3.0
# A GPU second that a tenant got more than others counts as so many seconds of a later end.
FAIRNESS = 8.0
# After so many seconds a job waits for no warm backend any more.
MAX_WARM_WAIT_SECONDS = 120.0
# A run may take longer than expected, the more the longer it is: this part of it counts in addition.
RISK = 0.4
# A backend that is slow to answer, or ejected, counts as so much later than others that a job goes there only if no
# other one can run it.
SLOW_SECONDS = 1e9
# A rank of priority counts as so many seconds of an earlier end, so that neither work nor share outweigh it.
RANK_SECONDS = 1e10
# Bounds of a plan, so that a decision takes microseconds.
MAX_HEADS, MAX_STEPS = 12, 24


class LeastWork:
    """Policy that binds late, by expected GPU seconds.

    Args:
        ageing: see `AGEING`.
        pushed_out: see `PUSHED_OUT`.
        fairness: see `FAIRNESS`.
        max_warm_wait: see `MAX_WARM_WAIT_SECONDS`.
    """

    binds_late = True

    def __init__(
        self,
        ageing: float = AGEING,
        pushed_out: float = PUSHED_OUT,
        fairness: float = FAIRNESS,
        max_warm_wait: float = MAX_WARM_WAIT_SECONDS,
    ) -> None:
        self._ageing = ageing
        self._pushed_out = pushed_out
        self._fairness = fairness
        self._max_warm_wait = max_warm_wait

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the first job of the plan for an open slot; None if all open slots are better left idle."""
        if not snapshot.board.has_open or not snapshot.heads:
            return None
        longest = critical_head(snapshot)
        if longest is not None:
            choice = self._plan(snapshot, [longest])
            if choice is not None:
                return choice
        return self._plan(snapshot, snapshot.heads[:MAX_HEADS])

    def _plan(self, snapshot: Snapshot, heads: Sequence[Head]) -> Choice | None:
        board, now = snapshot.board, snapshot.now
        models = {head.work.signature.model for head in heads}
        able = {head.able for head in heads if head.able is not None}
        competitors = board.competitors(models, able)
        views = competitors.views
        plan = _Plan(now, competitors, snapshot.costs, self._pushed_out)
        # Rows by their keys. A key may be too low until its row is placed, because keys only rise as the plan goes on.
        rows = []
        for serial, head in enumerate(heads):
            waited = now - head.since
            handicap = self._fairness * head.lead - self._ageing * waited - RANK_SECONDS * head.rank
            row = _Row(head, handicap, waited > self._max_warm_wait, snapshot.costs)
            rows.append((handicap + row.seconds * plan.fastest, serial, row))
        heapify(rows)
        steps = 0
        while rows and steps < MAX_STEPS:
            _, serial, row = rows[0]
            if row.version != plan.versions[row.at]:
                if plan.place(row):
                    heapreplace(rows, (row.key, serial, row))
                else:
                    heappop(rows)
                continue
            if views[row.at].slots > 0:
                return Choice(row.head, views[row.at].name)
            plan.keep(row)
            steps += 1
            if row.left == 0:
                heappop(rows)
        # If the plan is too long, don't leave a slot idle, because jobs for it may come later in the plan.
        left = [row for _, _, row in rows if plan.place_open(row)]
        if not left:
            return None
        row = min(left, key=attrgetter("key"))
        return Choice(row.head, views[row.at].name)


class _Row:
    """Head in a plan: its work at usual speed, its best backend `at`, the end there and that of its key.

    `version` is that of the backend's plan when the row was placed.
    """

    __slots__ = (
        *("at", "deviations", "end", "handicap", "head", "ignores_loads", "key", "left", "model", "seconds", "version"),
    )

    def __init__(self, head: Head, handicap: float, ignores_loads: bool, costs: Costs) -> None:
        self.head = head
        self.model = head.work.signature.model
        self.handicap = handicap
        self.ignores_loads = ignores_loads
        self.left = head.jobs
        self.seconds = costs.usual_seconds(head.work)
        self.deviations = costs.deviations(head.work)
        self.at, self.version, self.end, self.key = 0, -1, 0.0, 0.0


class _Plan:
    """Expected end of the jobs of each backend, and its models then, as the plan goes on."""

    def __init__(self, now: float, competitors: Competitors, costs: Costs, pushed_out: float) -> None:
        views = competitors.views
        self._places = competitors.places
        self._costs = costs
        self._pushed_out = pushed_out
        self._views = views
        self._ready = [view.ends_at - now if view.ends_at > now else 0.0 for view in views]
        self._held = [view.held for view in views]
        self._charges: list[float | None] = [None] * len(views)
        # Of each model, the factor of its runs and the seconds of its load, by place, once they are known.
        self._costs_of: dict[str, list[tuple[float, float] | None]] = {}
        # A rough lower bound of the time of a run on the fastest backend, compared with usual speed.
        self.fastest = 0.8 * min([view.factor for view in views], default=1.0)
        self.versions = [0] * len(views)

    def place(self, row: _Row, *, only_open: bool = False) -> bool:
        """Find the backend where a head's job ends first, of all or the open ones. Return False if none may run it."""
        model, able, deviations = row.model, row.head.able, row.deviations
        ready, held, views = self._ready, self._held, self._views
        known = self._costs_of.get(model)
        if known is None:
            known = self._costs_of[model] = [None] * len(views)
        best, best_end, at = math.inf, 0.0, -1
        for i in self._places[model]:
            end = ready[i]
            if end >= best or (able is not None and views[i].name not in able):
                continue
            if only_open and views[i].slots <= 0:
                continue
            costs = known[i]
            if costs is None:
                name = views[i].name
                costs = known[i] = self._costs.run_costs(model, name)
            seconds = row.seconds * costs[0]
            if deviations and (deviation := deviations.get(views[i].name)) is not None:
                seconds *= deviation.factor
            end += seconds
            cost = end + RISK * seconds + (SLOW_SECONDS if views[i].slow else 0.0)
            if model and model not in held[i]:
                end += costs[1]
                if not row.ignores_loads:
                    cost += costs[1] + self._charge(i)
            if cost < best:
                best, best_end, at = cost, end, i
        if at < 0:
            return False
        row.at, row.version, row.end, row.key = at, self.versions[at], best_end, best_end + row.handicap
        return True

    def place_open(self, row: _Row) -> bool:
        """Find the open backend where a head's job ends first. Return False if none may run it.

        A slow one may not, if another one that is not open can run it.
        """
        is_slow = self.place(row) and self._views[row.at].slow
        return self.place(row, only_open=True) and (is_slow or not self._views[row.at].slow)

    def _charge(self, i: int) -> float:
        """Return the charge for the models that a load pushes out of a backend."""
        charge = self._charges[i]
        if charge is None:
            charge, view = 0.0, self._views[i]
            if not view.keeps_several:
                loads = [self._costs.load_seconds(model, view.name) for model in self._held[i]]
                charge = self._pushed_out * max(loads, default=0.0)
            self._charges[i] = charge
        return charge

    def keep(self, row: _Row) -> None:
        """Keep the best backend of a head for one of its jobs."""
        at, model = row.at, row.model
        self._ready[at] = row.end
        self.versions[at] += 1
        if self._views[at].keeps_several:
            self._held[at] |= {model}
        else:
            self._held[at] = frozenset((model,))
            self._charges[at] = None
        row.left -= 1
