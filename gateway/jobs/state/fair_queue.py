"""Fair share of the jobs that wait in the gateway, and of those in each backend's queue.

Tenants get GPU seconds by their weights (`routing/shares.py`): of all next jobs that one goes first whose tenant got
the fewest. A tenant's first job has the turn of its clock, and each further one a turn that is later by the expected
seconds of the jobs before it. If all jobs take equally long, tenants take turns. A tenant orders its own jobs by their
numbers, as ComfyUI orders all of them (``number``, ``front``: server.py). So no number gives a tenant more.

A job of higher priority goes before those of lower ones, of all tenants. A job that waits gains one step of priority
each `priority_seconds`, and counts with these against jobs of other priorities alone, because among jobs of one
priority the fair share decides.

A backend's queue is a heap on ``number`` and takes floats (execution.py). The number sent upstream is the job's queue
key. It lies between the queue keys of the two jobs between which the new job belongs.

Pure: no clock of its own and no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from gateway.jobs.routing.shares import Shares
from gateway.jobs.state.job import USUAL_SECONDS, Job
from gateway.jobs.state.transitions import State

# Distance between the queue keys of jobs that join the end, so that many others fit between two of them.
SPACING = 1024.0
# A waiting job gains a step of priority each so many seconds, unless the settings say otherwise.
PRIORITY_SECONDS = 300.0
# The part of a run in the usual seconds, and the shortest run.
LEARNING_RATE, MIN_SECONDS = 0.25, 0.001

_queue_key = attrgetter("queue_key")


class Queued(NamedTuple):
    """Job in a backend's queue: its tenant, its number in the tenant's own order, its queue key.

    `seconds` are the expected ones. `level` is its priority with the steps that it gained by waiting.
    """

    tenant: str
    number: float
    queue_key: float = 0.0
    seconds: float = USUAL_SECONDS
    priority: int = 0
    level: int = 0


class FairShare(Shares):
    """Shares of tenants in the whole gateway, and on each backend.

    Attributes:
        priority_seconds: seconds of waiting that make up for one step of priority.
        usual_seconds: seconds of the last runs, on average: what a job is expected to take if no more is known.
    """

    def __init__(self, weight: Callable[[str], float] | None = None) -> None:
        super().__init__(*([weight] if weight is not None else []))
        self.priority_seconds = PRIORITY_SECONDS
        self.usual_seconds = USUAL_SECONDS
        self._backends: dict[str, Shares] = {}

    def level(self, job: Job, now: float) -> int:
        """Return a job's priority with the steps that it gained by waiting until `now`, on the monotonic clock."""
        return job.priority + int(max(now - job.accepted_at, 0.0) // self.priority_seconds)

    def sent(self, job: Job) -> None:
        """Charge a job that leaves the gateway for a backend; once, if it goes from one backend to the next."""
        if not job.charged:
            job.charged = job.expected_seconds
            self.charge(job.tenant, job.charged)

    def refund(self, job: Job) -> None:
        """Take back what a job was charged, because it comes back or ends before it ran."""
        self.adjust(job.tenant, -job.charged)
        job.charged = 0.0

    def started(self, job: Job, backend: str) -> None:
        """Charge a job that starts, on its backend."""
        self._on(backend).charge(job.tenant, job.expected_seconds)

    def correct(self, job: Job, seconds: float) -> None:
        """Charge a job that ran for its real seconds at usual speed, in place of what it was charged so far."""
        self._learn(seconds)
        self._correct(job, seconds)

    def _learn(self, seconds: float) -> None:
        # Take the mean of logarithms, because one long run among short ones would else count for all of them.
        self.usual_seconds *= (max(seconds, MIN_SECONDS) / self.usual_seconds) ** LEARNING_RATE

    def _correct(self, job: Job, seconds: float) -> None:
        more, job.charged = seconds - job.charged, seconds
        self.adjust(job.tenant, more)
        if job.backend is not None:
            self._on(job.backend).adjust(job.tenant, more)

    def left(self, job: Job, now: float, *, ran: bool) -> None:
        """Refund a job that left its backend before it ran; else charge it for its run until `now`.

        A job that ran to its end is charged later, by `correct`.
        """
        if not ran:
            self.refund(job)
        elif job.state in (State.CANCELLED, State.WAITING):
            if job.started_at is not None:
                self._correct(job, now - job.started_at)
            # If the job runs again, it is charged again.
            job.charged = 0.0

    def queue_key(self, job: Job, backend: str, others: Iterable[Job], now: float) -> float:
        """Return the queue key of a job that joins the others in a backend's queue."""
        queue = sorted((self._queued(each, now) for each in others), key=_queue_key)
        return self.key_among(queue, backend, self._queued(job, now))

    def key_among(self, queue: Sequence[Queued], backend: str, joining: Queued) -> float:
        """Return the queue key of a job that joins a backend's queue, which is in the order of queue keys."""
        if not queue:
            return 0.0
        position = position_in(queue, self._on(backend), joining)
        before = queue[position - 1].queue_key if position else None
        return _between(before, queue[position].queue_key if position < len(queue) else None)

    def rest(self) -> None:
        """Forget all clocks, because no tenant has a job."""
        super().rest()
        self._backends.clear()

    def _queued(self, job: Job, now: float) -> Queued:
        level = self.level(job, now)
        return Queued(job.tenant, job.number, job.queue_key, job.expected_seconds, job.priority, level)

    def _on(self, backend: str) -> Shares:
        found = self._backends.get(backend)
        if found is None:
            found = self._backends[backend] = Shares(lambda tenant: self.weight(tenant))
        return found


def position_in(queue: Sequence[Queued], shares: Shares, joining: Queued) -> int:
    """Return where a job joins a queue: before its tenant's own that it precedes, as far as its turns allow.

    It may pass another tenant's job only if, of its tenant's jobs before that one, the last has an earlier turn, or if
    it has the higher level.
    """
    joins_at, tenant = _first_place(queue, joining), joining.tenant
    # The turn of each tenant's next job, of those before the position that is looked at.
    turns = {each: shares.turn(each) for each in {tenant, *(each.tenant for each in queue)}}
    scales = {each: shares.scaled(each, 1.0) for each in turns}
    for position, each in enumerate(queue):
        clock, order = turns[each.tenant]
        if position >= joins_at and each.tenant != tenant:
            if joining.priority != each.priority and joining.level != each.level:
                may_pass = joining.level > each.level
            else:
                may_pass = turns[tenant] < (clock, order)
            if not may_pass:
                joins_at = position + 1
        turns[each.tenant] = clock + each.seconds * scales[each.tenant], order
    return joins_at


def _first_place(queue: Sequence[Queued], joining: Queued) -> int:
    """Return the first place that a job may have by its tenant's own order.

    If it goes before another one of its priority, it takes that one's turn, and passes none that this did not pass.
    """
    own = [position for position, each in enumerate(queue) if each.tenant == joining.tenant]
    before = [position for position in own if not _precedes(joining, queue[position])]
    first = before[-1] + 1 if before else 0
    alike = (position for position in own if position >= first and queue[position].priority == joining.priority)
    return next(alike, first)


def _precedes(joining: Queued, own: Queued) -> bool:
    if joining.priority == own.priority:
        return joining.number < own.number
    return joining.level > own.level


def _between(before: float | None, after: float | None) -> float:
    if before is None:
        return (after or 0.0) - SPACING
    if after is None:
        return before + SPACING
    # If no float lies between the two, the new key equals one of them, and the backend takes these as equal. For that,
    # dozens of jobs must have come between the same two, all of them still pending.
    return min(before + 1.0, before + (after - before) / 2)
