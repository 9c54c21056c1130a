"""Which backend has which open jobs, how many of them are queued and running there, and how many are whose."""

from __future__ import annotations

from collections import Counter

from gateway.jobs.job import QUEUED_THERE, SHOWN_RUNNING, Job, State


class Places:
    """An index of the ledger's: a job is entered after each change of its state or place, and leaves before it."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Job]] = {}
        self._queued: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._tenants: Counter[str] = Counter()
        self._started: Counter[str] = Counter()

    def jobs(self, backend: str) -> list[Job]:
        """The jobs on a backend, the first that came there first."""
        return list(self._jobs.get(backend, {}).values())

    def load(self, backend: str) -> tuple[int, int]:
        """How many are queued and running there, reservations included."""
        return self._queued.get(backend, 0), self._running.get(backend, 0)

    def of(self, tenant: str) -> int:
        """How many of a tenant's jobs a backend has, or may have."""
        return self._tenants[tenant]

    def started(self, tenant: str) -> int:
        """How many of those have started."""
        return self._started[tenant]

    def enter(self, job: Job) -> None:
        """It is where its `backend` says, if anywhere."""
        if job.backend is None:
            return
        self._tenants[job.tenant] += 1
        if job.state in SHOWN_RUNNING:
            self._started[job.tenant] += 1
        self._jobs.setdefault(job.backend, {})[job.upstream_id] = job
        if job.state in QUEUED_THERE:
            self._queued[job.backend] = self._queued.get(job.backend, 0) + 1
        elif job.state is State.RUNNING:
            self._running[job.backend] = self._running.get(job.backend, 0) + 1

    def leave(self, job: Job) -> None:
        """It is about to be elsewhere, or something else there."""
        if job.backend is None:
            return
        _one_less(self._tenants, job.tenant)
        if job.state in SHOWN_RUNNING:
            _one_less(self._started, job.tenant)
        self._jobs[job.backend].pop(job.upstream_id, None)
        if job.state in QUEUED_THERE:
            self._queued[job.backend] -= 1
        elif job.state is State.RUNNING:
            self._running[job.backend] -= 1


def _one_less(counts: Counter[str], tenant: str) -> None:
    counts[tenant] -= 1
    if not counts[tenant]:
        del counts[tenant]
