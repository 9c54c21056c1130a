"""Fair share: every tenant that has jobs in a queue has one turn in each of its rounds.

There is one such queue in the gateway, for the jobs that wait for a backend, and one on each backend. A tenant orders
its own jobs by their numbers, as ComfyUI orders all of them (``number``, ``front``: server.py), and they take its turns
in that order. So nothing that a tenant sends gives it more turns, or gives them sooner.

A backend's queue is a heap on ``number`` and takes floats (execution.py). The number sent upstream is the job's queue
key. It lies between the queue keys of the two jobs between which the new job belongs.

Pure: no clock and no I/O.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Distance between the queue keys of jobs that join the end, so that many others fit between two of them.
SPACING = 1024.0


class Rounds:
    """Current round of one queue: the tenants that had a turn, in order. A tenant's second turn begins a new round."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._served)

    def serve(self, tenant: str) -> None:
        """Note that a tenant has its turn."""
        if tenant in self._served:
            self._served.clear()
        self._served[tenant] = len(self._served)

    def turn(self, tenant: str, position: int) -> tuple[int, float]:
        """Return the turn of the job at a `position` of its tenant's own order; the lowest turn is the next.

        A turn is a round, counted from the current one, and the tenant's order in the round. Tenants without a turn in
        the current round share one order: among them the first to come is first.
        """
        order = self._served.get(tenant)
        return (position, math.inf) if order is None else (position + 1, order)


@dataclass(frozen=True, slots=True)
class Queued:
    """Job in a backend's queue: its tenant, its number in the tenant's own order, its queue key."""

    tenant: str
    number: float
    queue_key: float


class FairShare:
    """The rounds of all queues."""

    def __init__(self) -> None:
        self.waiting = Rounds()
        self._backends: dict[str, Rounds] = {}

    def sent(self, tenant: str) -> None:
        """Note that a job left the gateway for a backend: its tenant had a turn."""
        self.waiting.serve(tenant)

    def started(self, tenant: str, backend: str) -> None:
        """Note that a job started on its backend: its tenant had a turn there."""
        self._on(backend).serve(tenant)

    def queue_key(self, tenant: str, number: float, backend: str, queue: Sequence[Queued]) -> float:
        """Return the queue key of a job that joins a backend's queue. `queue` is in the order of queue keys."""
        if not queue:
            return 0.0
        position = position_in(queue, self._on(backend), tenant, number)
        before = queue[position - 1].queue_key if position else None
        return _between(before, queue[position].queue_key if position < len(queue) else None)

    def _on(self, backend: str) -> Rounds:
        return self._backends.setdefault(backend, Rounds())


def position_in(queue: Sequence[Queued], rounds: Rounds, tenant: str, number: float) -> int:
    """Return where a job joins a queue: before its tenant's own of higher numbers, as far as its turns allow.

    It may pass another tenant's job only if, of its tenant's jobs before that one, the last has an earlier turn.
    """
    own = [position for position, each in enumerate(queue) if each.tenant == tenant]
    first = next((position for position in own if queue[position].number > number), own[-1] + 1 if own else 0)
    counts: Counter[str] = Counter()
    joins_at = first
    for position, each in enumerate(queue):
        if position >= first and each.tenant != tenant:
            may_pass = rounds.turn(tenant, counts[tenant]) < rounds.turn(each.tenant, counts[each.tenant])
            joins_at = joins_at if may_pass else position + 1
        counts[each.tenant] += 1
    return joins_at


def _between(before: float | None, after: float | None) -> float:
    if before is None:
        return (after or 0.0) - SPACING
    if after is None:
        return before + SPACING
    # If no float lies between the two, the new key equals one of them, and the backend takes these as equal. For that,
    # dozens of jobs must have come between the same two, all of them still pending.
    return min(before + 1.0, before + (after - before) / 2)
