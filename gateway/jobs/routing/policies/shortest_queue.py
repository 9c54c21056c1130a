"""Shortest queue: the backend with the fewest pending prompts."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.jobs.routing.policies.heads import in_order, open_views
from gateway.jobs.routing.snapshot import BackendView, Choice, Head, Snapshot


class ShortestQueue:
    """Policy that binds each job at once, to the backend with the fewest pending prompts for its weight.

    Ties: idle before running, then readier for the job, then the least recently used.
    """

    binds_late = False

    def choose(self, snapshot: Snapshot) -> Choice | None:
        """Return the earliest head, and its backend."""
        for head in in_order(snapshot):
            first = next(open_views(snapshot, head), None)
            if first is not None:
                return Choice(head, self._readiest(snapshot, head, first).name)
        return None

    def _readiest(self, snapshot: Snapshot, head: Head, first: BackendView) -> BackendView:
        """Return the readiest backend with as short a queue as the first one, which is the least recently used."""
        best, best_rank = first, (-_readiness(snapshot, head, first), first.used_at)
        tie = first.slow, first.pending / first.weight, first.running
        for view in _ready_views(snapshot, head, first):
            if (view.slow, view.pending / view.weight, view.running) != tie:
                continue
            rank = (-_readiness(snapshot, head, view), view.used_at)
            if rank < best_rank and snapshot.fits(view) and snapshot.may(head, view):
                best, best_rank = view, rank
        return best


def _ready_views(snapshot: Snapshot, head: Head, first: BackendView) -> Iterator[BackendView]:
    """Yield the backends that may be readier for a head's job than the first one."""
    views, model = snapshot.board.views, head.work.signature.model
    for name in snapshot.readiness:
        if name in views:
            yield views[name]
    # If the first one has the model, too, another one is no readier for having it.
    if model and model not in first.held:
        yield from snapshot.board.holders(model)


def _readiness(snapshot: Snapshot, head: Head, view: BackendView) -> int:
    model = head.work.signature.model
    return snapshot.readiness.get(view.name, 0) + (bool(model) and model in view.held)
