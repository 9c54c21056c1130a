"""The jobs that wait in the gateway. Tenants take turns; a tenant's jobs go in the order of their numbers."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from heapq import merge
from operator import attrgetter, itemgetter

from gateway.jobs.state.fair_queue import Rounds
from gateway.jobs.state.job import Job

_number = attrgetter("number")


class WaitingList:
    """Sorted list of waiting jobs for each tenant: fast enough for ten thousand jobs, and any job can leave it.

    Only the ledger changes the lists. `bytes` is the size of all waiting jobs' prompts in memory.
    """

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._tenants: dict[str, list[Job]] = {}
        self._count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, job: Job) -> None:
        """Add a job that waits from now on."""
        insort(self._tenants.setdefault(job.tenant, []), job, key=_number)
        self._count += 1
        self.bytes += job.submission.size

    def remove(self, job: Job) -> None:
        """Remove a job that waits no longer."""
        own = self._tenants[job.tenant]
        place = bisect_left(own, job.number, key=_number)
        while own[place] is not job:
            place += 1
        del own[place]
        if not own:
            del self._tenants[job.tenant]
        self._count -= 1
        self.bytes -= job.submission.size

    @property
    def tenants(self) -> Collection[str]:
        """Return the tenants that have waiting jobs."""
        return self._tenants.keys()

    def jobs(self) -> list[Job]:
        """Return all waiting jobs, the next to go first."""
        return list(self.in_turn(set(self._tenants)))

    def in_turn(self, tenants: set[str]) -> Iterator[Job]:
        """Yield the jobs of some tenants, the next to go first. Skip a tenant that the caller removes meanwhile."""
        queues = [self._own_in_turn(tenant, tenants) for tenant in tuple(tenants) if tenant in self._tenants]
        for _, job in merge(*queues, key=itemgetter(0)):
            if job.tenant in tenants:
                yield job

    def _own_in_turn(self, tenant: str, tenants: set[str]) -> Iterator[tuple[tuple[int, float, float], Job]]:
        # Copy the list and read the turn first, because the caller sends jobs, and changes turns, during the iteration.
        own, (turn, order) = tuple(self._tenants[tenant]), self._rounds.turn(tenant, 0)
        for place, job in enumerate(own):
            if tenant not in tenants:
                return
            yield (turn + place, order, job.accepted_at), job
