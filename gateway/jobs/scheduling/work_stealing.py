"""Work stealing: an idle backend gets a job that has not started on a busy one.

`policies.steal_work` chooses the job. The gateway deletes its prompt from the busy backend's queue, then looks in that
backend's /queue and history. Only if the prompt is in neither may the job go elsewhere, so that it never runs twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.comfy.client import BackendError, Refused
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.admission.admission import Admission
from gateway.jobs.scheduling.backend_prompts import Where, locate_prompt
from gateway.jobs.scheduling.policies import Stuck, steal_work
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks

_log = logs.get("work_stealing")

ASK_PAUSE_SECONDS = 0.5
# Maximum wait of an admin's drain for the backend, in seconds.
ANSWER_SECONDS = 2.0
# Time of a usual run if no backend has run anything yet: the same for all.
UNKNOWN_SECONDS = 1.0
# A running job counts as at least this share of a usual run, because it may take longer than the last ones.
LEFT_AT_LEAST = 0.25


class WorkStealing:
    """Work stealing for idle backends, and for drains.

    Args:
        resend: sends a job that was taken back, but not to the named backend.
    """

    def __init__(
        self, ledger: Ledger, fleet: Fleet, admission: Admission, metrics: Metrics, resend: Callable[[Job, str], None]
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._admission = admission
        self._metrics = metrics
        self._resend = resend
        self._tasks = Tasks("work_stealing")
        self._taking: set[str] = set()

    async def close(self) -> None:
        """Stop. A job that was given back and not sent is found missing at the next start."""
        await self._tasks.close()

    def look(self) -> None:
        """Let backends that are idle now steal jobs."""
        while idle := self._idle():
            choice = steal_work(idle, self._stuck())
            if choice is None:
                return
            stuck, target = choice
            job = self._ledger.find_upstream(stuck.backend, stuck.upstream_id)
            assert job is not None
            job.recalled = True
            self._taking.add(target)
            self._tasks.start(self._move(job, self._fleet.backends[stuck.backend], target), job.prompt_id)

    async def take_back(self, source: Backend) -> None:
        """Take back the jobs that have not started on a drained backend. They go elsewhere, or wait in the gateway.

        Wait for the backend's answers for `ANSWER_SECONDS`. Jobs that it has not given back by then follow later.
        """
        moves = []
        for job in self._ledger.jobs_on(source.name):
            # Skip a job that lost its partner keys in a restart, because it can't be sent anywhere else.
            if job.state is State.PENDING and not job.recalled and not job.submission.lacks_secrets:
                job.recalled = True
                moves.append(self._tasks.start(self._move(job, source, ""), job.prompt_id))
        if moves:
            await asyncio.wait(moves, timeout=ANSWER_SECONDS)

    def _idle(self) -> dict[str, float]:
        """Return the idle backends, each with the seconds of a usual run there."""
        taken = self._taking | self._fleet.ejections.ejected(time.monotonic())
        return {
            backend.name: self._seconds(backend)
            for backend in self._fleet.backends.values()
            if backend.eligible
            and backend.health is Health.UP
            and self._ledger.load(backend.name) == (0, 0)
            and not (backend.foreign_running or backend.foreign_pending or backend.name in taken)
        }

    def _stuck(self) -> list[Stuck]:
        found = []
        for backend in self._fleet.backends.values():
            # Skip a backend that is slow or not connected, because it can't say in time if a job has begun.
            if backend.health is Health.UP and backend.connected and self._ledger.load(backend.name)[0]:
                found += self._stuck_on(backend)
        return found

    def _stuck_on(self, backend: Backend) -> list[Stuck]:
        jobs, usual = self._ledger.jobs_on(backend.name), self._seconds(backend)
        ahead = backend.foreign_pending * usual + sum(
            max(usual - (time.monotonic() - (job.started_at or 0.0)), usual * LEFT_AT_LEAST)
            for job in jobs
            if job.state is State.RUNNING
        )
        if backend.foreign_running:
            ahead += usual
        found = []
        pending = sorted((job for job in jobs if job.state is State.PENDING), key=lambda job: job.queue_key)
        for position, job in enumerate(pending):
            # Count a job that is being taken back for the jobs behind it, because it may yet stay.
            stays = job.recalled or job.moved or job.pinned or job.submission.lacks_secrets
            if not (stays or job.submission.is_interactive):
                able = self._admission.refresh_able(job)
                if job.avoid or job.lacking:
                    able = (frozenset(self._fleet.backends) if able is None else able) - job.avoid - job.lacking
                found.append(Stuck(position, backend.name, job.upstream_id, ahead + usual, able))
            ahead += usual
        return found

    def _seconds(self, backend: Backend) -> float:
        """Return the seconds of a usual run on a backend. If it has run nothing yet, return the others' average."""
        if backend.run_seconds is not None:
            return backend.run_seconds
        known = [each.run_seconds for each in self._fleet.backends.values() if each.run_seconds is not None]
        return sum(known) / len(known) if known else UNKNOWN_SECONDS

    async def _move(self, job: Job, source: Backend, target: str) -> None:
        attempt, assignment = job.attempts, job.assignment
        assert assignment is not None
        try:
            if await self._given_back(job, source, assignment):
                self._ledger.recall(job)
                if target:
                    self._metrics.takeovers.labels(source.name, target).inc()
                _log.info("job_taken_back", **job.log_ids, backend=source.name, target=target or None)
        finally:
            job.recalled = False
            self._taking.discard(target)
        if job.state is State.WAITING and job.attempts == attempt:
            self._resend(job, source.name)

    async def _given_back(self, job: Job, source: Backend, assignment: Assignment) -> bool:
        """Take a job back from a backend, and retry until the outcome is known. Return True if the job is free."""

        def is_there() -> bool:
            return job.state is State.PENDING and job.assignment is assignment

        while is_there():
            try:
                await source.client.delete_pending([assignment.upstream_id])
                # Locate the prompt, because it may have begun, or even ended, before the delete.
                found = await locate_prompt(source, assignment)
                return found.where is Where.ABSENT and is_there()
            except Refused:
                return False
            except BackendError as error:
                _log.info("prompt_lookup_failed", **job.log_ids, backend=source.name, error=str(error))
            await asyncio.sleep(ASK_PAUSE_SECONDS)
        return False
