"""Round robin: each backend in turn."""

from __future__ import annotations

from gateway.jobs.routing.policies.heads import in_order, open_views
from gateway.jobs.routing.snapshot import Choice, Snapshot


class RoundRobin:
    """Policy that binds each job at once, to the next backend; one of twice the weight has two turns.

    The turns are spread smoothly: all backends gain their weight, and the one that gained the most pays for all.
    """

    binds_late = False

    def __init__(self) -> None:
        self._gained: dict[str, float] = {}

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the earliest head, and its backend."""
        for head in in_order(snapshot):
            views = sorted(open_views(snapshot, head), key=lambda view: view.name)
            if not views:
                continue
            self._gained = {name: gain for name, gain in self._gained.items() if name in snapshot.board.views}
            for view in views:
                self._gained[view.name] = self._gained.get(view.name, 0.0) + view.weight
            best = max(views, key=lambda view: self._gained[view.name])
            self._gained[best.name] -= sum(view.weight for view in views)
            return Choice(head, best.name)
        return None
