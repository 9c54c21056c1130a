"""Failure policy: retry a job if the machine failed, on another backend if there is one. A workflow's error ends it.

The client of a retried job gets no event of the failure or of the second start. For the client, the job runs on.
"""

from __future__ import annotations

from typing import Any

from gateway.comfy.client import BackendError
from gateway.comfy.error_causes import Cause, Failure, failure_of_entry
from gateway.comfy.history import Outcome, outcome_of
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.scheduling.lost_inputs import LostInputs
from gateway.jobs.scheduling.retries import Retries
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.settings import DispatchSettings
from gateway.telemetry import logs

_log = logs.get("failures")


class FailedRuns:
    """Policy for ended jobs: it decides on retries, and reports failures of backends to the fleet.

    Args:
        retries: schedules the retries.
        lost_inputs: checks if a file that the gateway put on a backend is gone.
    """

    def __init__(
        self, ledger: Ledger, fleet: Fleet, settings: DispatchSettings, retries: Retries, lost_inputs: LostInputs
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._settings = settings
        self._retries = retries
        self._lost_inputs = lost_inputs

    async def runs_again(self, job: Job, backend: Backend, entry: dict[str, Any]) -> bool:
        """Judge the entry of a job that ran to its end. Return True if the job is not over, because it runs again."""
        outcome, kind = outcome_of(entry), job.submission.kind
        if outcome is Outcome.SUCCESS:
            self._fleet.succeeded(backend, kind)
            self._blame(job, backend)
        if outcome is not Outcome.ERROR:
            return False
        failure = failure_of_entry(entry)
        cause = failure.cause
        if cause is Cause.FILE and not await self._lost_inputs.after_failure(job, backend, failure.node_id):
            cause = Cause.WORKFLOW
        if cause is not Cause.FILE:
            self._fleet.failed(backend, kind)
        if cause is Cause.POISONED:
            self._fleet.poisoned(backend, job.upstream_id)
        elif cause is Cause.MEMORY:
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

    async def _free(self, backend: Backend) -> None:
        try:
            await backend.client.free()
        except BackendError as error:
            _log.warning("memory_not_freed", backend=backend.name, error=str(error))

    def _has_another_chance(self, job: Job, cause: Cause) -> bool:
        """Return True if a job may be retried: once a cause, because a job that poisons two GPUs would poison a third.

        If the machine is at fault, the job may go to each untried machine, because others may be sound.
        """
        if cause is Cause.MACHINE:
            untried = (each for each in self._fleet.backends.values() if each.eligible and each.name not in job.avoid)
            if not any(each.name != job.backend for each in untried):
                return False
        elif cause is Cause.WORKFLOW or cause in job.retried_for:
            return False
        if job.interrupted:
            return False
        is_complete = not job.submission.lacks_secrets
        return self._settings.rerun_started and is_complete and job.attempts + 1 < self._settings.attempts

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
