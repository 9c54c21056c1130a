"""Failure policy: retry a job if the machine failed, on another backend if there is one. A workflow's error ends it.

The client of a retried job gets no event of the failure or of the second start. For the client, the job runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gateway.comfy.client import BackendError
from gateway.comfy.error_causes import Cause, Failure, failure_of_entry
from gateway.comfy.history import Outcome, outcome_of
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.device_needs import DeviceNeeds
from gateway.jobs.scheduling.lost_inputs import LostInputs
from gateway.jobs.scheduling.retries import Retries
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.poisonous import PoisonousGraphs
from gateway.jobs.state.transitions import State
from gateway.settings import DispatchSettings
from gateway.telemetry import logs

_log = logs.get("failures")


class FailedRuns:
    """Policy for ended jobs: it decides on retries, and reports failures of backends to the fleet.

    Args:
        retries: schedules the retries.
        lost_inputs: checks if a file that the gateway put on a backend is gone.
        poisonous: the graphs that left backends' GPUs unusable.
        device_needs: remembers the jobs that ran out of memory.
        able: returns the backends that can run a job; None for all.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        settings: DispatchSettings,
        retries: Retries,
        lost_inputs: LostInputs,
        poisonous: PoisonousGraphs,
        device_needs: DeviceNeeds,
        able: Callable[[Job], frozenset[str] | None],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._settings = settings
        self._retries = retries
        self._lost_inputs = lost_inputs
        self._poisonous = poisonous
        self._device_needs = device_needs
        self._able = able
        # Backends that are poisoned by a job which started before this time (monotonic), and is not judged yet.
        self._unblamed: dict[str, float] = {}

    async def runs_again(self, job: Job, backend: Backend, entry: dict[str, Any]) -> bool:
        """Judge the entry of a job that ran to its end. Return True if the job is not over, because it runs again."""
        outcome, kind = outcome_of(entry), job.submission.kind
        if outcome is Outcome.SUCCESS:
            self._fleet.succeeded(backend, kind)
            self._blame(job, backend)
            if backend.poisoned is None:
                self._poisonous.succeeded(job)
        if outcome is not Outcome.ERROR:
            return False
        failure = failure_of_entry(entry)
        cause = failure.cause
        if cause is Cause.FILE and not await self._lost_inputs.after_failure(job, backend, failure.node_id):
            cause = Cause.WORKFLOW
        if cause is not Cause.FILE:
            self._fleet.failed(backend, kind)
        if cause is Cause.POISONED:
            if self._is_culprit(job, backend):
                node_id = (job.live.added or {}).get(failure.node_id, failure.node_id)
                told, has_other = (backend.name, failure.error, node_id), self._has_other_backend(job, backend)
                self._poisonous.poisoned(job, *told, time.time(), has_other=has_other)
            self._fleet.poisoned(backend, job.upstream_id)
        elif cause is Cause.MEMORY:
            self._device_needs.ran_out(job, backend)
            await self._free(backend)
        if job.state is not State.COLLECTING or job.backend != backend.name:
            # If the job lost its backend meanwhile, it is not over: reconciliation requeued it.
            return True
        # If the backend is poisoned, blame that, whatever the error says.
        cause = Cause.POISONED if backend.poisoned is not None else cause
        if not self._has_another_chance(job, cause):
            return False
        self._send_again(job, backend, cause, failure)
        return True

    def _blame(self, job: Job, backend: Backend) -> None:
        """Eject the backend on which the job failed before, because another could run it: the machine is to blame.

        The error alone proves nothing, because a prompt may bring it about.
        """
        blamed, job.blamed = job.blamed, None
        if blamed is not None and blamed[0] != backend.name:
            self._fleet.eject(self._fleet.backends[blamed[0]], blamed[1])

    def _is_culprit(self, job: Job, backend: Backend) -> bool:
        """Return True if this job poisoned the backend, because no job before it on that process failed so.

        On a poisoned process every job fails alike, and the entry of a later job may be read first.
        """
        began = job.started_at or 0.0
        if backend.poisoned is not None and began >= self._unblamed.get(backend.name, 0.0):
            return False
        others = (each for each in self._ledger.jobs_on(backend.name) if each is not job)
        if any(each.state is State.COLLECTING and (each.started_at or 0.0) < began for each in others):
            self._unblamed[backend.name] = began
            return False
        self._unblamed.pop(backend.name, None)
        return True

    def _has_other_backend(self, job: Job, backend: Backend) -> bool:
        able = self._able(job)
        names = self._fleet.backends.keys() if able is None else able
        return any(name != backend.name for name in names)

    async def _free(self, backend: Backend) -> None:
        try:
            await backend.client.free()
        except BackendError as error:
            _log.warning("memory_not_freed", backend=backend.name, error=str(error))

    def _has_another_chance(self, job: Job, cause: Cause) -> bool:
        """Return True if a job may be retried: once a cause, because a job that poisons two GPUs would poison a third.

        If the machine is at fault, the job may go to each untried machine, because others may be sound. If its memory
        did not suffice, the job may go to a larger device each time.
        """
        if cause is Cause.MACHINE:
            untried = (each for each in self._fleet.backends.values() if each.eligible and each.name not in job.avoid)
            if not any(each.name != job.backend for each in untried):
                return False
        elif cause is Cause.WORKFLOW or (cause in job.retried_for and not self._may_grow(job, cause)):
            return False
        if job.interrupted or (cause is Cause.POISONED and self._poisonous.end_of(job) is not None):
            return False
        is_complete = not job.submission.lacks_secrets
        return self._settings.rerun_started and is_complete and job.attempts + 1 < self._settings.attempts

    def _may_grow(self, job: Job, cause: Cause) -> bool:
        backend = self._fleet.backends.get(job.backend or "")
        if cause is not Cause.MEMORY or backend is None:
            return False
        return self._device_needs.has_larger(backend, self._able(job))

    def _send_again(self, job: Job, backend: Backend, cause: Cause, failure: Failure) -> None:
        reason = {"reason": str(cause), "error": failure.error}
        _log.warning("job_failed_by_machine", **job.log_ids, backend=backend.name, **reason)
        if cause is Cause.MACHINE:
            job.blamed = (backend.name, failure.error)
        job.retried_for |= {cause}
        if cause is not Cause.FILE:
            # Avoid this backend, unless only a file was gone: the gateway puts the file there again before the retry.
            job.avoid |= {backend.name}
        self._ledger.lose(job)
        self._retries.later([job], backend.name, str(cause), at_once=cause is Cause.FILE)
