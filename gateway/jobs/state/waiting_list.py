"""The jobs that wait in the gateway, in the order of priorities and fair share (`fair_queue.py`)."""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator
from heapq import merge
from operator import attrgetter, itemgetter

from gateway.jobs.state.fair_queue import FairShare
from gateway.jobs.state.job import Job

_number = attrgetter("number")
# The turn of a waiting job: clock, order among equal clocks, time of acceptance.
_Turn = tuple[float, float, float]


class WaitingList:
    """Sorted list of waiting jobs for each priority and tenant: fast enough for ten thousand, and any job can leave it.

    Only the ledger changes the lists. `bytes` is the size of all waiting jobs' prompts in memory.
    """

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._priorities: dict[int, dict[str, list[Job]]] = {}
        self._counts: Counter[str] = Counter()
        self._count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, job: Job) -> None:
        """Add a job that waits from now on."""
        insort(self._priorities.setdefault(job.priority, {}).setdefault(job.tenant, []), job, key=_number)
        self._counts[job.tenant] += 1
        self._count += 1
        self.bytes += job.submission.size
        self._share.waits(job.tenant)

    def remove(self, job: Job) -> None:
        """Remove a job that waits no longer."""
        tenants = self._priorities[job.priority]
        own = tenants[job.tenant]
        place = bisect_left(own, job.number, key=_number)
        while own[place] is not job:
            place += 1
        del own[place]
        if not own:
            del tenants[job.tenant]
            if not tenants:
                del self._priorities[job.priority]
        self._counts[job.tenant] -= 1
        if not self._counts[job.tenant]:
            del self._counts[job.tenant]
            self._share.waits_no_more(job.tenant)
        self._count -= 1
        self.bytes -= job.submission.size

    @property
    def tenants(self) -> Collection[str]:
        """Return the tenants that have waiting jobs."""
        return self._counts.keys()

    def before(self, job: Job) -> int:
        """Return how many of its tenant's waiting jobs go before a job: those of higher priority or a lower number."""
        found = 0
        for priority, tenants in self._priorities.items():
            own = tenants.get(job.tenant, ())
            if priority > job.priority:
                found += len(own)
            elif priority == job.priority:
                found += bisect_left(own, job.number, key=_number)
        return found

    def jobs(self) -> list[Job]:
        """Return all waiting jobs, the next to go first."""
        return list(self.in_turn(set(self._counts)))

    def in_turn(self, tenants: set[str]) -> Iterator[Job]:
        """Yield the jobs of some tenants, the next to go first. Skip a tenant that the caller removes meanwhile."""
        now = time.monotonic()
        queues = [self._of_priority(own, tenants) for _, own in sorted(self._priorities.items(), reverse=True)]
        # Of each priority look at the next job alone, because among jobs of one priority the fair share decides.
        heads = [(turn, job, queue) for queue in queues for turn, job in [next(queue, _NONE)] if job is not None]
        while heads:
            place = 0
            if len(heads) > 1:
                ranks = [(-self._share.level(job, now), turn) for turn, job, _ in heads]
                place = ranks.index(min(ranks))
            _, job, queue = heads[place]
            if job.tenant in tenants:
                yield job
            turn, after = next(queue, _NONE)
            if after is None:
                del heads[place]
            else:
                heads[place] = turn, after, queue

    def _of_priority(self, own: dict[str, list[Job]], tenants: set[str]) -> Iterator[tuple[_Turn, Job]]:
        queues = [self._of_tenant(own[tenant], tenants) for tenant in tuple(tenants) if tenant in own]
        return merge(*queues, key=itemgetter(0))

    def _of_tenant(self, jobs: list[Job], tenants: set[str]) -> Iterator[tuple[_Turn, Job]]:
        # Copy the list and read the turn first, because the caller sends jobs, and changes turns, during the iteration.
        own, tenant = tuple(jobs), jobs[0].tenant
        (clock, order), seconds = self._share.turn(tenant), 0.0
        for job in own:
            if tenant not in tenants:
                return
            yield (clock + self._share.scaled(tenant, seconds), order, job.accepted_at), job
            seconds += job.expected_seconds


_NONE: tuple[_Turn, None] = (0.0, 0.0, 0.0), None
