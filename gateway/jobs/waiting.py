"""The jobs that wait in the gateway, by their fair-share tag: the lowest goes first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection

from gateway.jobs.job import Job


class WaitingList:
    """A sorted list: ten thousand jobs are few enough for it, and any one can leave it. The ledger alone changes it.

    `bytes` are those of their prompts, as they are kept.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, float, Job]] = []
        self._tenants: Counter[str] = Counter()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, job: Job) -> None:
        """A job waits from now on."""
        insort(self._entries, (job.tag, job.number, job), key=_order)
        self._tenants[job.tenant] += 1
        self.bytes += job.submission.size

    def remove(self, job: Job) -> None:
        """A job waits no longer."""
        place = bisect_left(self._entries, (job.tag, job.number), key=_order)
        while self._entries[place][2] is not job:
            place += 1
        del self._entries[place]
        self.bytes -= job.submission.size
        self._tenants[job.tenant] -= 1
        if not self._tenants[job.tenant]:
            del self._tenants[job.tenant]

    @property
    def tenants(self) -> Collection[str]:
        """Whose they are."""
        return self._tenants.keys()

    def jobs(self) -> list[Job]:
        """All of them, the next to go first."""
        return [job for _, _, job in self._entries]


def _order(entry: tuple[float, float, Job]) -> tuple[float, float]:
    return entry[:2]
