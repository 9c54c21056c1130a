"""Random two: of two random backends the one with fewer prompts."""

from __future__ import annotations

from random import Random

from gateway.jobs.routing.policies.heads import in_order, open_views
from gateway.jobs.routing.snapshot import BackendView, Choice, Snapshot


class RandomTwo:
    """Policy that binds each job at once, to the less loaded of two random backends.

    Several gateways before one fleet don't herd with it, because they don't all choose the same backend.
    """

    binds_late = False

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the earliest head, and its backend."""
        for head in in_order(snapshot):
            views = list(open_views(snapshot, head))
            if not views:
                continue
            two = views if len(views) <= 2 else self._random.sample(views, 2)
            return Choice(head, min(two, key=_load).name)
        return None


def _load(view: BackendView) -> tuple[float, str]:
    return (view.pending + view.running) / view.weight, view.name
