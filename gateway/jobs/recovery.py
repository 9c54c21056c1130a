"""After an interruption: what became of the jobs that a backend had?

`judge` decides, from what the backend says of itself; the rest carries it out.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from enum import Enum, auto

from gateway.comfy.client import BackendError, Queue
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs import partner_keys
from gateway.jobs.checks import Checks
from gateway.jobs.collector import Collector
from gateway.jobs.dispatcher import Dispatcher
from gateway.jobs.job import PLACED, Job, State
from gateway.jobs.ledger import Ledger
from gateway.jobs.relay import Relay
from gateway.jobs.retries import Retries
from gateway.jobs.upstream import drop_copies
from gateway.settings import DispatchSettings
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.tenants.policy import Policies

_log = logs.get("recovery")


class Verdict(Enum):
    """What became of a job on its backend."""

    RUNNING = auto()
    PENDING = auto()
    ENDED = auto()
    LOST = auto()


def judge(upstream_id: str, running: Collection[str], pending: Collection[str], in_history: bool) -> Verdict:
    """What a backend's queue and history say of a job.

    The queue must have been read before the history: ComfyUI moves a job from one to the other in one step
    (execution.py, task_done), so a job that is in neither was never there or is lost.
    """
    if upstream_id in running:
        return Verdict.RUNNING
    if upstream_id in pending:
        return Verdict.PENDING
    return Verdict.ENDED if in_history else Verdict.LOST


class Recovery:
    """Reconciles the ledger with a backend, and gives up what a dead one had."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        dispatcher: Dispatcher,
        collector: Collector,
        relay: Relay,
        settings: DispatchSettings,
        retries: Retries,
        checks: Checks,
        policies: Policies,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._collector = collector
        self._relay = relay
        self._settings = settings
        self._retries = retries
        self._checks = checks
        self._policies = policies
        self._tasks = Tasks("recovery")
        self._checking: set[Job] = set()

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.close()

    async def reconcile(self, backend: Backend) -> None:
        """Find out what became of the jobs on a backend that was just connected.

        Raises:
            BackendError: it did not answer; it must not be given work yet.
        """
        if self._ledger.waiting:
            self._adopt(backend, await backend.client.queue())
        closed = [job for job in self._jobs_on(backend) if backend.name in self._policies.of(job.tenant).closed]
        if closed:
            # The configuration has changed. Other tenants' code may read along there, so these jobs run elsewhere.
            self._give_up(backend, closed, "was dedicated to other tenants")
        unwanted = self._ledger.copies.on(backend.name)
        if unwanted:
            await drop_copies(self._ledger, backend, unwanted)
        jobs = [job for job in self._ledger.jobs_on(backend.name) if not self._dispatcher.is_sending(job)]
        if not jobs:
            return
        queue = await backend.client.queue()
        for job in jobs:
            await self._settle(backend, job, queue)

    def _adopt(self, backend: Backend, queue: Queue) -> None:
        """What was taken for lost there, and is there, need not go elsewhere, unless it went already, or must not."""
        there = queue.running_ids | queue.pending_ids
        for job in self._ledger.waiting.jobs():
            allowed = self._checks.allowed(job.tenant)
            is_free = job.pinned is None and not self._ledger.copies.is_told(backend.name, job.upstream_id)
            is_free = is_free and (allowed is None or backend.name in allowed)
            if job.upstream_id in there and is_free:
                self._ledger.copies.remove(backend.name, job.upstream_id)
                self._ledger.send(job, backend.name)
                self._ledger.placed(job)

    def probed(self, backend: Backend, queue: Queue, asked_at: float) -> None:
        """Look for jobs that a probe should have shown: their end, or their loss, went by unheard."""
        there = queue.running_ids | queue.pending_ids
        copies = self._ledger.copies.among(backend.name, there)
        if copies:
            self._tasks.start(drop_copies(self._ledger, backend, copies), f"drop:{backend.name}")
        for job in self._ledger.jobs_on(backend.name):
            is_settled = (
                job.state in (State.PENDING, State.RUNNING) and 0 < job.placed_at < asked_at and not job.recalled
            )
            if is_settled and job.upstream_id not in there and job not in self._checking:
                self._checking.add(job)
                self._tasks.start(self._check(backend, job), job.prompt_id)

    async def _check(self, backend: Backend, job: Job) -> None:
        try:
            # Asked again: between the probe and now its end may have been heard, or it may have been sent elsewhere.
            await self._settle(backend, job, await backend.client.queue())
            self._dispatcher.wake()
        except BackendError as error:
            _log.info("checking", backend=backend.name, prompt_id=job.prompt_id, error=str(error))
        finally:
            self._checking.discard(job)

    async def _settle(self, backend: Backend, job: Job, queue: Queue) -> None:
        there = queue.running_ids | queue.pending_ids
        in_history = job.upstream_id not in there and await backend.client.history_entry(job.upstream_id) is not None
        if job.backend != backend.name or job.state not in PLACED or self._dispatcher.is_sending(job) or job.recalled:
            return
        verdict = judge(job.upstream_id, queue.running_ids, queue.pending_ids, in_history)
        if job.state is State.COLLECTING and verdict is not Verdict.LOST:
            return
        match verdict:
            case Verdict.RUNNING:
                if job.state is State.SENDING:
                    self._ledger.taken(job, job.upstream_id, job.node_errors)
                if job.state is State.PENDING:
                    self._relay.start(backend, job, int(time.time() * 1000))
            case Verdict.PENDING:
                if job.state is State.SENDING:
                    self._ledger.taken(job, job.upstream_id, job.node_errors)
            case Verdict.ENDED:
                self._collector.collect(job, at_once=True)
            case Verdict.LOST:
                self.lose(job, "is not there any more")

    def down(self, backend: Backend) -> None:
        """A backend is gone: what it had goes elsewhere, and must not run there, should it come back with it."""
        self._give_up(backend, self._jobs_on(backend), f"is {backend.health}")
        self._dispatcher.wake()

    def _jobs_on(self, backend: Backend) -> list[Job]:
        return [job for job in self._ledger.jobs_on(backend.name) if not job.is_ending]

    def _give_up(self, backend: Backend, jobs: Collection[Job], what: str) -> None:
        """Send jobs of a backend elsewhere, and remove them from that backend when it can be asked."""
        for job in jobs:
            on_its_way = job.state is State.SENDING
            self._ledger.copies.add(backend.name, job.upstream_id, on_its_way=on_its_way)
        self._lose(jobs, backend.name, what)

    def lose(self, job: Job, what: str) -> None:
        """Send a job again that its backend does not have, unless it was tried often enough or is not wanted."""
        self._lose([job], job.backend or "", what)

    def _lose(self, jobs: Collection[Job], place: str, what: str) -> None:
        again = []
        for job in jobs:
            if job.is_ending:
                continue
            _log.warning("job lost", prompt_id=job.prompt_id, backend=place, attempt=job.attempts + 1, reason=what)
            had_begun = job.start_time is not None
            self._ledger.lose(job)
            if job.interrupted:
                self._collector.interrupt(job)
            elif (reason := self._reason_to_end(job, place, what, had_begun=had_begun)) is not None:
                self._collector.fail(job, *reason)
            else:
                again.append(job)
        self._retries.later(again, place, "lost")

    def _reason_to_end(self, job: Job, place: str, what: str, *, had_begun: bool) -> tuple[str, str] | None:
        """Why a lost job is not sent again, and the error's type; None if it is."""
        if job.attempts >= self._settings.attempts:
            return f"given up after {job.attempts} attempts; the last backend, {place}, {what}", "BackendLost"
        if had_begun and not self._settings.rerun_started:
            reason = f"it had begun on {place}, which {what}, and what has begun is not run again"
            return f"{reason} (dispatch.rerun_started is false)", "BackendLost"
        return partner_keys.LOST if job.submission.lacks_secrets else None
