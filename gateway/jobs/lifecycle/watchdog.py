"""Watchdog for jobs that take too long: running jobs without events, and jobs whose deadline has passed."""

from __future__ import annotations

import time

from gateway.comfy.client import MAX_SOCKET_MESSAGE
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.lifecycle.completion import Completion
from gateway.jobs.scheduling.backend_prompts import drop_orphans
from gateway.jobs.scheduling.retries import Retries
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.settings import DispatchSettings
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks
from gateway.tenants.policy import Policies

_log = logs.get("watchdog")

LOOK_SECONDS = 0.5
# A job fails after this many messages that are larger than the gateway reads.
MAX_OVERSIZED = 3
# Seconds in which an interrupted prompt must stop: ComfyUI heeds an interrupt between two steps of a node.
STOP_SECONDS = 10.0


class Watchdog:
    """Watchdog that checks all open jobs periodically. Start it once the fleet knows its backends."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        completion: Completion,
        retries: Retries,
        settings: DispatchSettings,
        policies: Policies,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._completion = completion
        self._retries = retries
        self._settings = settings
        self._policies = policies
        self._metrics = metrics
        self._tasks = Tasks("watchdog")
        self._stopping_since: dict[str, float] = {}

    def start(self) -> None:
        """Check all jobs before any backend gets work, because deadlines may have passed. Then check periodically."""
        self._look(time.monotonic())
        self._tasks.repeat(self._look_again, "look", LOOK_SECONDS, at_once=False)

    async def close(self) -> None:
        """Stop checking."""
        await self._tasks.close()

    async def _look_again(self) -> None:
        self._look(time.monotonic())

    def _look(self, now: float) -> None:
        # Look the deadline up once a tenant, because ten thousand waiting jobs belong to a few tenants.
        usual: dict[str, float | None] = {}
        for job in self._ledger.jobs():
            if job.tenant not in usual:
                usual[job.tenant] = self._policies.of(job.tenant).deadline or self._settings.deadline
            seconds = job.submission.deadline or usual[job.tenant]
            # Skip a job that is being collected, because it ran to its end in time.
            if seconds is not None and now - job.accepted_at >= seconds and job.state is not State.COLLECTING:
                self._expire(job, seconds)
        for backend in self._fleet.backends.values():
            self._look_at(backend, now)
            if backend.stopping is None:
                self._stopping_since.pop(backend.name, None)
            elif now - self._stopping_since.setdefault(backend.name, now) >= STOP_SECONDS:
                self._clear(backend)

    def _expire(self, job: Job, seconds: float) -> None:
        if job.is_ending:
            return
        _log.info("job_deadline_passed", **job.log_ids, seconds=seconds, state=str(job.state), backend=job.backend)
        self._take_away(job)
        self._completion.expire(job, f"deadline of {seconds:g} s passed")

    def _look_at(self, backend: Backend, now: float) -> None:
        stalled = 0
        # If a backend does not answer, its health handles that: slow, then lost.
        running_ids = backend.queue.running_ids if backend.health is Health.UP else frozenset()
        for job in self._ledger.jobs_on(backend.name):
            if job.state is not State.RUNNING or job.upstream_id not in running_ids:
                continue
            silent = now - max(job.live.heard_at, job.started_at or 0.0)
            if silent >= self._settings.stall_after:
                stalled += 1
                self._say_stalled(job, silent)
            if self._settings.job_timeout is not None and silent >= self._settings.job_timeout:
                self._time_out(job, backend, self._settings.job_timeout)
        if backend.stalled != (stalled > 0):
            backend.stalled = stalled > 0
            self._ledger.steps.on_backend(backend.name)
        self._metrics.jobs_stalled.labels(backend.name).set(stalled)

    def heard_too_much(self, backend: Backend) -> None:
        """Count a message of a running job that is larger than the gateway reads. After `MAX_OVERSIZED`, fail the job.

        Each such message closes the backend's socket, and other jobs' events may be lost until it is open again.
        """
        for job in self._ledger.jobs_on(backend.name):
            if job.state is State.RUNNING:
                job.live.oversized += 1
                if job.live.oversized >= MAX_OVERSIZED and not job.is_ending:
                    _log.error("job_messages_too_large", **job.log_ids, backend=backend.name)
                    self._take_away(job)
                    maximum = f"{MAX_SOCKET_MESSAGE} bytes"
                    reason = f"{MAX_OVERSIZED} of its messages on {backend.name} had more than {maximum}"
                    self._completion.fail(job, reason, "ResultUnreadable")

    def _say_stalled(self, job: Job, silent: float) -> None:
        if not job.live.stall_said:
            job.live.stall_said = True
            _log.warning("job_stalled", **job.log_ids, backend=job.backend, silent_seconds=round(silent))

    def _time_out(self, job: Job, backend: Backend, seconds: float) -> None:
        _log.warning("job_timed_out", **job.log_ids, backend=backend.name, then=self._settings.on_timeout)
        self._take_away(job)
        reason = f"no event for {seconds:g} s on {backend.name}, so it was interrupted there (dispatch.job_timeout)"
        is_complete = not job.submission.lacks_secrets
        may_retry = self._settings.on_timeout == "retry" and is_complete
        if job.interrupted:
            self._completion.interrupt(job)
        elif not may_retry:
            self._completion.fail(job, reason, "JobTimeout")
        elif job.attempts >= self._settings.attempts:
            self._completion.fail(job, f"{reason}; given up after {job.attempts} attempts", "JobTimeout")
        else:
            job.avoid |= {backend.name}
            self._retries.later([job], backend.name, "timeout")

    def _clear(self, backend: Backend) -> None:
        """Move a backend's pending jobs to other backends, because the running prompt ignores its interrupt."""
        jobs = [job for job in self._ledger.jobs_on(backend.name) if job.state is State.PENDING]
        if jobs:
            _log.warning("interrupt_ignored", backend=backend.name, jobs_moved=len(jobs))
        for job in jobs:
            self._take_away(job)
        self._retries.later(jobs, backend.name, "timeout")

    def _take_away(self, job: Job) -> None:
        """Requeue a job, and cancel its prompt on the backend as soon as that can be reached."""
        if job.backend is None:
            return
        backend, upstream_id = self._fleet.backends[job.backend], job.upstream_id
        if job.state is State.RUNNING:
            backend.stopping = upstream_id
            self._stopping_since[backend.name] = time.monotonic()
        self._ledger.lose(job, for_good=True)
        self._tasks.start(drop_orphans(self._ledger, backend, [upstream_id]), f"drop:{upstream_id}")
