"""Work stealing: an idle backend gets a job that has not started on a busy one.

`stealing_rules.steals` chooses the job. The gateway deletes its prompt from the busy backend's queue, then looks
in that backend's /queue and history. Only if the prompt is in neither may the job go elsewhere, so that it never runs
twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.admission.admission import Admission
from gateway.jobs.scheduling.backend_prompts import take_back
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.scheduling.stealing_rules import Stuck, steals
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks

_log = logs.get("work_stealing")

# Maximum wait of an admin's drain for the backend, in seconds.
ANSWER_SECONDS = 2.0
# Time of a usual run if no backend has run anything yet: the same for all.
UNKNOWN_SECONDS = 1.0
# A running job counts as at least this share of a usual run, because it may take longer than the last ones.
LEFT_AT_LEAST = 0.25
# Bounds of a look by learned times, so that it takes milliseconds: idle backends, and estimates of a job on one.
MAX_IDLE, MAX_ESTIMATES = 16, 2_000
NOWHERE = frozenset[str]()


class WorkStealing:
    """Work stealing for idle backends, and for drains.

    Args:
        resend: sends a job that was taken back, but not to the named backend.
        knows_times: True to compare the learned times of each job, False to compare those of usual jobs.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        admission: Admission,
        metrics: Metrics,
        board: FleetBoard,
        learning: Learning,
        resend: Callable[[Job, str], None],
        *,
        knows_times: bool,
    ) -> None:
        self._board = board
        self._learning = learning
        self._knows_times = knows_times
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
        idle = self._idle()
        if self._knows_times and len(idle) > MAX_IDLE:
            # Look at any of them, and at others next time, because each job's time there is to be estimated.
            idle = dict(random.sample(list(idle.items()), MAX_IDLE))
        for stuck, target in steals(idle, self._stuck(idle) if idle else ()):
            job = self._ledger.find_upstream(stuck.backend, stuck.upstream_id)
            assert job is not None
            self._taking.add(target)
            self._start(job, self._fleet.backends[stuck.backend], target)

    def take(self, job: Job, source: Backend) -> None:
        """Take a job back that has not started. Then it goes elsewhere, or waits in the gateway."""
        self._start(job, source)

    async def take_back(self, source: Backend) -> None:
        """Take back the jobs that have not started on a drained backend. They go elsewhere, or wait in the gateway.

        Wait for the backend's answers for `ANSWER_SECONDS`. Jobs that it has not given back by then follow later.
        """
        moves = []
        for job in self._ledger.jobs_on(source.name):
            # Skip a job that lost its partner keys in a restart, because it can't be sent anywhere else.
            if job.state is State.PENDING and not job.recalled and not job.submission.lacks_secrets:
                moves.append(self._start(job, source))
        if moves:
            await asyncio.wait(moves, timeout=ANSWER_SECONDS)

    def _idle(self) -> dict[str, float]:
        """Return the idle backends, each with the seconds of a usual run there."""
        taken = self._taking | self._fleet.ejections.ejected(time.monotonic())
        found = {}
        self._board.refresh()
        for view in self._board.at_once.in_queue_order():
            if view.pending or view.running:
                # Those behind have something to run, too.
                break
            backend = self._fleet.backends[view.name]
            if backend.eligible and backend.health is Health.UP and view.name not in taken:
                found[view.name] = self._seconds(backend)
        return found

    def _stuck(self, idle: Collection[str]) -> list[Stuck]:
        # Skip a backend that is slow or not connected, because it can't say in time if a job has begun.
        busy = [
            backend
            for backend in self._fleet.backends.values()
            if backend.health is Health.UP and backend.connected and self._ledger.load(backend.name)[0]
        ]
        if not self._knows_times:
            return [stuck for backend in busy for stuck in self._stuck_on(backend)]
        maximum = max(MAX_ESTIMATES // (len(idle) * max(len(busy), 1)), 1)
        return [stuck for backend in busy for stuck in islice(self._stuck_late(backend, idle), maximum)]

    def _stuck_late(self, backend: Backend, idle: Collection[str]) -> Iterator[Stuck]:
        """Yield the jobs that have not started on a backend, by the learned times of each job and each backend."""
        learning, now, jobs = self._learning, self._learning.now(), self._ledger.jobs_on(backend.name)
        held = learning.held(backend.name).held
        ahead = (backend.foreign_pending + backend.foreign_running) * self._seconds(backend)
        ahead += sum(learning.rest(job, now) for job in jobs if job.state is State.RUNNING)
        for position, job in enumerate(_pending(jobs)):
            own = learning.run_seconds(job.submission, backend.name, held)
            able = self._able(job) if self._may_leave(job) else NOWHERE
            if able is None or not able.isdisjoint(idle):
                seconds = {name: learning.run_seconds(job.submission, name, learning.held(name).held) for name in idle}
                yield Stuck(position, backend.name, job.upstream_id, ahead + own, able, seconds)
            ahead += own
            held = learning.held(backend.name).after([job.submission.workload.signature.model])

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
        for position, job in enumerate(_pending(jobs)):
            # Count a job that is being taken back for the jobs behind it, because it may yet stay.
            if self._may_leave(job):
                found.append(Stuck(position, backend.name, job.upstream_id, ahead + usual, self._able(job)))
            ahead += usual
        return found

    def _may_leave(self, job: Job) -> bool:
        stays = job.recalled or job.moved or job.pinned or job.submission.lacks_secrets
        return not (stays or job.submission.is_interactive)

    def _able(self, job: Job) -> frozenset[str] | None:
        """Return the backends that may get a job that is taken back; None for all."""
        able = self._admission.refresh_able(job)
        if job.avoid or job.lacking:
            able = (frozenset(self._fleet.backends) if able is None else able) - job.avoid - job.lacking
        return able

    def _seconds(self, backend: Backend) -> float:
        """Return the seconds of a usual run on a backend. If it has run nothing yet, return the others' average."""
        if backend.run_seconds is not None:
            return backend.run_seconds
        known = [each.run_seconds for each in self._fleet.backends.values() if each.run_seconds is not None]
        return sum(known) / len(known) if known else UNKNOWN_SECONDS

    def _start(self, job: Job, source: Backend, target: str = "") -> asyncio.Task[None]:
        """Begin to take a job back from its backend."""
        # Note the assignment now, because the job may be cancelled or lost before the task's first step.
        assignment = job.assignment
        assert assignment is not None
        job.recalled = True
        return self._tasks.start(self._move(job, source, target, assignment, job.attempts), job.prompt_id)

    async def _move(self, job: Job, source: Backend, target: str, assignment: Assignment, attempt: int) -> None:
        try:
            if await take_back(source, job, assignment, lambda: _is_pending(job, assignment)):
                self._ledger.recall(job)
                if target:
                    self._metrics.takeovers.labels(source.name, target).inc()
                _log.info("job_taken_back", **job.log_ids, backend=source.name, target=target or None)
        finally:
            job.recalled = False
            self._taking.discard(target)
        if job.state is State.WAITING and job.attempts == attempt:
            self._resend(job, source.name)


def _pending(jobs: Iterable[Job]) -> list[Job]:
    """Return those of a backend's jobs that have not started, in the order in which they will."""
    return sorted((job for job in jobs if job.state is State.PENDING), key=lambda job: job.queue_key)


def _is_pending(job: Job, assignment: Assignment) -> bool:
    return job.state is State.PENDING and job.assignment is assignment
