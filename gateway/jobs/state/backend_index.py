"""Index of open jobs by backend: how many are queued and running there, and how many of each tenant."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.jobs.state.job import Job
from gateway.jobs.state.transitions import QUEUED_THERE, SHOWN_RUNNING, State
from gateway.telemetry.busy_time import BusyTime


@dataclass(slots=True)
class _Queue:
    """Jobs queued on one backend, counted by tenant, with the highest queue key and number since it was empty.

    `priority` is that of all jobs since then, None if they differ.
    """

    tenants: Counter[str] = field(default_factory=Counter)
    queue_key: float = -math.inf
    number: float = -math.inf
    priority: int | None = None


class BackendIndex:
    """Index of the ledger's jobs by backend. A job leaves before each change of state or backend, then is entered.

    Args:
        changed: called with the name of a backend whose jobs have changed.
    """

    def __init__(self, changed: Callable[[str], object]) -> None:
        self._changed = changed
        self.busy = BusyTime()
        self._jobs: dict[str, dict[str, Job]] = {}
        self._queued: dict[str, int] = {}
        self._queues: dict[str, _Queue] = {}
        self._at_work: dict[str, Counter[str]] = {}
        self._running: dict[str, int] = {}
        self._tenants: Counter[str] = Counter()
        self._started: Counter[str] = Counter()

    def jobs(self, backend: str) -> list[Job]:
        """Return the jobs on a backend, in the order in which they came there."""
        return list(self._jobs.get(backend, {}).values())

    def load(self, backend: str) -> tuple[int, int]:
        """Return how many jobs are queued and how many run on a backend, reservations included."""
        return self._queued.get(backend, 0), self._running.get(backend, 0)

    def has(self, backend: str, tenant: str) -> bool:
        """Return True if a tenant has a job queued or running on a backend."""
        return tenant in self._at_work.get(backend, ())

    def end_for(self, job: Job, backend: str) -> float | None:
        """Return the queue key behind which a job belongs on a backend.

        Return None if the caller must look at the queue: it is empty, has others' jobs, or had a higher number or
        another priority.
        """
        queue = self._queues.get(backend)
        if queue is None or len(queue.tenants) != 1 or job.tenant not in queue.tenants:
            return None
        return queue.queue_key if queue.number <= job.number and queue.priority == job.priority else None

    def of(self, tenant: str) -> int:
        """Return how many of a tenant's jobs are on backends, or may be."""
        return self._tenants[tenant]

    def started(self, tenant: str) -> int:
        """Return how many of a tenant's jobs have started on their backends."""
        return self._started[tenant]

    def enter(self, job: Job) -> None:
        """Count a job on its backend, if it has one."""
        if job.backend is None:
            return
        self._changed(job.backend)
        self._tenants[job.tenant] += 1
        if job.state in SHOWN_RUNNING:
            self._started[job.tenant] += 1
        self._jobs.setdefault(job.backend, {})[job.upstream_id] = job
        if job.state is not State.COLLECTING:
            at_work = self._at_work.get(job.backend)
            if at_work is None:
                at_work = self._at_work[job.backend] = Counter()
            at_work[job.tenant] += 1
        if job.state in QUEUED_THERE:
            self._queued[job.backend] = self._queued.get(job.backend, 0) + 1
            queue = self._queues.get(job.backend)
            if queue is None:
                queue = self._queues[job.backend] = _Queue(priority=job.priority)
            if queue.priority != job.priority:
                queue.priority = None
            queue.tenants[job.tenant] += 1
            if job.queue_key > queue.queue_key:
                queue.queue_key = job.queue_key
            if job.number > queue.number:
                queue.number = job.number
        elif job.state is State.RUNNING:
            self._running[job.backend] = self._running.get(job.backend, 0) + 1
            self.busy.begin(job.backend, time.monotonic())

    def leave(self, job: Job) -> None:
        """Uncount a job, because its backend or its state is about to change."""
        if job.backend is None:
            return
        self._changed(job.backend)
        _one_less(self._tenants, job.tenant)
        if job.state in SHOWN_RUNNING:
            _one_less(self._started, job.tenant)
        self._jobs[job.backend].pop(job.upstream_id, None)
        if job.state is not State.COLLECTING:
            _one_less(self._at_work[job.backend], job.tenant)
        if job.state in QUEUED_THERE:
            self._queued[job.backend] -= 1
            tenants = self._queues[job.backend].tenants
            _one_less(tenants, job.tenant)
            if not tenants:
                del self._queues[job.backend]
        elif job.state is State.RUNNING:
            self._running[job.backend] -= 1
            self.busy.end(job.backend, time.monotonic())


def _one_less(counts: Counter[str], tenant: str) -> None:
    counts[tenant] -= 1
    if not counts[tenant]:
        del counts[tenant]
