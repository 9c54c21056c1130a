"""Reconciliation after an interruption: compare a backend's queue and history with the jobs that it had."""

from __future__ import annotations

import time
from collections.abc import Collection

from gateway.comfy.client import BackendError, BadAnswer, TimedOut
from gateway.comfy.responses import MARK, Queue
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.lifecycle.completion import Completion
from gateway.jobs.lifecycle.event_relay import EventRelay
from gateway.jobs.scheduling.backend_prompts import Located, Where, drop_orphans, extra_of, locate_prompt
from gateway.jobs.scheduling.dispatcher import Dispatcher
from gateway.jobs.scheduling.retries import Retries
from gateway.jobs.state import partner_keys
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import PLACED, State
from gateway.settings import DispatchSettings
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.tenants.policy import Policies

_log = logs.get("reconciliation")


class Reconciliation:
    """Reconciliation of the ledger with backends. It also requeues the jobs of a dead backend."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        completion: Completion,
        event_relay: EventRelay,
        settings: DispatchSettings,
        retries: Retries,
        admission: Admission,
        policies: Policies,
        client_id: str,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._completion = completion
        self._event_relay = event_relay
        self._settings = settings
        self._retries = retries
        self._admission = admission
        self._policies = policies
        self._client_id = client_id
        self._tasks = Tasks("reconciliation")
        self._checking: set[Job] = set()
        # By backend: the prompts that run by its last probe, but whose start event did not come.
        self._unheard: dict[str, frozenset[str]] = {}

    async def close(self) -> None:
        """Stop the checks and cancellations that are under way."""
        await self._tasks.close()

    async def reconcile(self, backend: Backend) -> None:
        """Reconcile the jobs on a backend that was just connected.

        Raises:
            BackendError: the backend did not answer; it must get no jobs yet.
        """
        queue = await backend.client.queue()
        self._adopt(backend, queue)
        self._find_orphans(backend, queue)
        closed = [job for job in self._jobs_on(backend) if backend.name in self._policies.of(job.tenant).closed]
        if closed:
            # If the configuration dedicates the backend to others, move these jobs, because others' code may read them.
            self._lose(closed, backend.name, "was dedicated to other tenants")
        unwanted = self._ledger.orphans.on(backend.name)
        if unwanted:
            await drop_orphans(self._ledger, backend, unwanted)
        jobs = [job for job in self._ledger.jobs_on(backend.name) if not self._dispatcher.is_sending(job)]
        if not jobs:
            return
        if unwanted:
            queue = await backend.client.queue()
        for job in jobs:
            await self._settle(backend, job, queue)

    def _adopt(self, backend: Backend, queue: Queue) -> None:
        """Give requeued jobs back to a backend that still has their prompts.

        Skip a job that was sent elsewhere meanwhile, that is pinned, or whose tenant may not use this backend.
        """
        there = queue.running_ids | queue.pending_ids
        for job in self._ledger.waiting.jobs():
            allowed = self._admission.allowed(job.tenant)
            if job.pinned is None and (allowed is None or backend.name in allowed):
                former = next((each for each in job.given_up if self._is_free(backend, each, there)), None)
                if former is not None:
                    self._ledger.adopt(job, former)
                    self._ledger.placed(job)

    def _is_free(self, backend: Backend, former: Assignment, there: Collection[str]) -> bool:
        """Return True if a backend still has a given-up assignment, and the gateway is not cancelling it there."""
        is_there = former.backend == backend.name and former.upstream_id in there
        return is_there and not self._ledger.orphans.is_told(backend.name, former.upstream_id)

    def _find_orphans(self, backend: Backend, queue: Queue) -> None:
        """Note as orphans the prompts in a backend's queue that this gateway sent, in any run, and no job has."""
        awaited = [job for job in self._ledger.jobs_on(backend.name) if job.state is State.SENDING]
        for item in (*queue.running, *queue.pending):
            extra, upstream_id = extra_of(item), item[1]
            if extra.get("client_id") != self._client_id or self._ledger.find_upstream(backend.name, upstream_id):
                continue
            # Skip a prompt that may be of a job being sent, because the answer tells that job the backend's own id.
            marks = {job.assignment.mark for job in awaited if job.assignment is not None}
            is_awaited = bool(awaited) and extra.get(MARK, "") in {*marks, ""}
            if not is_awaited and not self._ledger.orphans.has_ended(upstream_id):
                self._ledger.orphans.add(backend.name, upstream_id)

    def probed(self, backend: Backend, queue: Queue, asked_at: float) -> None:
        """Check jobs that are missing in a probe's queue, because the gateway did not hear of their end or loss."""
        there = queue.running_ids | queue.pending_ids
        self._find_orphans(backend, queue)
        orphans = self._ledger.orphans.among(backend.name, there)
        if orphans:
            self._tasks.start(drop_orphans(self._ledger, backend, orphans), f"drop:{backend.name}")
        unheard = set()
        for job in self._ledger.jobs_on(backend.name):
            is_settled = (
                job.state in (State.PENDING, State.RUNNING) and 0 < job.placed_at < asked_at and not job.recalled
            )
            if is_settled and job.state is State.PENDING and job.upstream_id in queue.running_ids:
                unheard.add(job.upstream_id)
            if is_settled and job.upstream_id not in there and job not in self._checking:
                self._checking.add(job)
                self._tasks.start(self._check(backend, job), job.prompt_id)

        before, self._unheard[backend.name] = self._unheard.get(backend.name, frozenset()), frozenset(unheard)
        if before & unheard:
            self._fleet.reconnect(backend)

    async def _check(self, backend: Backend, job: Job) -> None:
        was_pending, placed_at = job.state is State.PENDING, job.placed_at
        try:
            # Ask again, because since the probe the job's end may have been heard, or the job may have moved.
            await self._settle(backend, job, await backend.client.queue())
            self._dispatcher.wake()
            if was_pending and job.state is State.COLLECTING and backend.heard_prompt_at < placed_at:
                # If the job ran from start to end and no event came, the socket is at fault: open it anew.
                self._fleet.reconnect(backend)
        except BackendError as error:
            _log.info("prompt_lookup_failed", backend=backend.name, **job.log_ids, error=str(error))
        finally:
            self._checking.discard(job)

    async def _settle(self, backend: Backend, job: Job, queue: Queue) -> None:
        assignment = job.assignment
        if assignment is None:
            return
        try:
            found = await locate_prompt(backend, assignment, queue=queue)
        except (BadAnswer, TimedOut) as error:
            # If only the entry can't be had, let completion retry it a bounded number of times, because other jobs must
            # not wait for that.
            _log.info("prompt_lookup_failed", backend=backend.name, **job.log_ids, error=str(error))
            found = Located(Where.ENDED, assignment.upstream_id)
        if job.assignment is not assignment or job.state not in PLACED:
            return
        if self._dispatcher.is_sending(job) or job.recalled:
            return
        if found.upstream_id != assignment.upstream_id and not self._ledger.may_be_called(job, found.upstream_id):
            found = Located(Where.ABSENT, assignment.upstream_id)
        if job.state is State.COLLECTING and found.where is not Where.ABSENT:
            return
        if job.state is State.SENDING and found.is_queued:
            self._ledger.taken(job, found.upstream_id, job.node_errors)
        match found.where:
            case Where.RUNNING if job.state is State.PENDING:
                self._event_relay.start(backend, job, int(time.time() * 1000))
            case Where.ENDED:
                self._completion.collect(job, at_once=True)
            case Where.ABSENT:
                self.lose(job, "is not there any more")

    def down(self, backend: Backend) -> None:
        """Requeue the jobs of a dead backend. Their prompts become orphans, in case the backend comes back."""
        self._lose(self._jobs_on(backend), backend.name, f"is {backend.health}")
        self._dispatcher.wake()

    def _jobs_on(self, backend: Backend) -> list[Job]:
        return [job for job in self._ledger.jobs_on(backend.name) if not job.is_ending]

    def lose(self, job: Job, what: str) -> None:
        """Retry a job that its backend does not have. End it if it was interrupted, or may not be retried."""
        self._lose([job], job.backend or "", what)

    def _lose(self, jobs: Collection[Job], backend_name: str, what: str) -> None:
        again = []
        for job in jobs:
            if job.is_ending:
                continue
            _log.warning("job_lost", **job.log_ids, backend=backend_name, attempt=job.attempts + 1, reason=what)
            had_begun = job.start_time is not None
            self._ledger.lose(job)
            if job.interrupted:
                self._completion.interrupt(job)
            elif (reason := self._reason_to_end(job, backend_name, what, had_begun=had_begun)) is not None:
                self._completion.fail(job, *reason)
            else:
                again.append(job)
        self._retries.later(again, backend_name, "lost")

    def _reason_to_end(self, job: Job, backend_name: str, what: str, *, had_begun: bool) -> tuple[str, str] | None:
        """Return the reason why a lost job is not retried, and the error's type; None if it is retried."""
        if job.attempts >= self._settings.attempts:
            return f"given up after {job.attempts} attempts; the last backend, {backend_name}, {what}", "BackendLost"
        if had_begun and not self._settings.rerun_started:
            reason = f"it had begun on {backend_name}, which {what}, and what has begun is not run again"
            return f"{reason} (dispatch.rerun_started is false)", "BackendLost"
        return partner_keys.LOST if job.submission.lacks_secrets else None
