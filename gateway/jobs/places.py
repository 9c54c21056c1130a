"""Which backend has which open jobs, and how many of them are queued and running there."""

from __future__ import annotations

from gateway.jobs.job import QUEUED_THERE, Job, State


class Places:
    """An index of the ledger's: a job is entered after each change of its state or place, and leaves before it."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Job]] = {}
        self._queued: dict[str, int] = {}
        self._running: dict[str, int] = {}

    def jobs(self, backend: str) -> list[Job]:
        """The jobs on a backend, the first that came there first."""
        return list(self._jobs.get(backend, {}).values())

    def load(self, backend: str) -> tuple[int, int]:
        """How many are queued and running there, reservations included."""
        return self._queued.get(backend, 0), self._running.get(backend, 0)

    def enter(self, job: Job) -> None:
        """It is where its `backend` says, if anywhere."""
        if job.backend is None:
            return
        self._jobs.setdefault(job.backend, {})[job.upstream_id] = job
        if job.state in QUEUED_THERE:
            self._queued[job.backend] = self._queued.get(job.backend, 0) + 1
        elif job.state is State.RUNNING:
            self._running[job.backend] = self._running.get(job.backend, 0) + 1

    def leave(self, job: Job) -> None:
        """It is about to be elsewhere, or something else there."""
        if job.backend is None:
            return
        self._jobs[job.backend].pop(job.upstream_id, None)
        if job.state in QUEUED_THERE:
            self._queued[job.backend] -= 1
        elif job.state is State.RUNNING:
            self._running[job.backend] -= 1
