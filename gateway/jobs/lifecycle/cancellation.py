"""Cancel, interrupt and delete jobs for callers. No caller touches another tenant's job.

As in ComfyUI, deletion affects only jobs that have not started, and interruption only running jobs. An unknown id is
no error (server.py, post_queue, post_interrupt, cancel_job_by_id).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable

from gateway.comfy.client import BackendError
from gateway.fleet.fleet import Fleet
from gateway.jobs.lifecycle.completion import Completion
from gateway.jobs.lifecycle.history_deletion import HistoryDeletion
from gateway.jobs.scheduling.backend_prompts import drop_orphans, interrupt
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.job_log import CANCELLED, log_phase
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

_log = logs.get("jobs")

_NOT_STARTED = (State.ACCEPTED, State.WAITING, State.SENDING, State.PENDING)
_OPEN = (*_NOT_STARTED, State.RUNNING, State.COLLECTING)
# Maximum wait of a caller for backends, in seconds. Later the gateway still carries the order out.
ANSWER_WITHIN = 1.0
AGAIN_AFTER = 0.5


# The jobs that a call affected, each as (tenant, prompt_id).
Touched = list[tuple[str, str]] | None


class Cancellation:
    """Orders of callers: delete, clear, interrupt, cancel, forget. A `tenant` of None is an admin, for all jobs.

    Args:
        freed: called when a backend has room again.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        completion: Completion,
        history_deletion: HistoryDeletion,
        freed: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._completion = completion
        self._history_deletion = history_deletion
        self._freed = freed
        self._tasks = Tasks("cancellation")
        self._interrupting: set[Job] = set()

    async def close(self) -> None:
        """Stop the orders that are under way."""
        await self._tasks.close()

    def find(self, tenant: str | None, prompt_id: str) -> Job | None:
        """Return an open job that the caller may touch."""
        return self._ledger.find_any(prompt_id) if tenant is None else self._ledger.find(tenant, prompt_id)

    def _named(self, tenant: str | None, prompt_ids: Iterable[str]) -> list[Job]:
        return [job for prompt_id in prompt_ids if (job := self.find(tenant, prompt_id))]

    async def delete(
        self, tenant: str | None, prompt_ids: Iterable[str], shown: Collection[Job], touched: Touched = None
    ) -> None:
        """Cancel the named jobs that the caller sees as pending, even if one of them runs already or has run.

        Args:
            shown: the jobs that the caller sees as running, which stay.
            touched: a list to which the cancelled jobs are added, even if this call raises.

        Raises:
            StoreError: the jobs are cancelled, but a restart might bring them back.
        """
        await self._take_out(self._named(tenant, prompt_ids), shown, touched)

    async def clear(self, tenant: str, shown: Collection[Job], touched: Touched = None) -> None:
        """Cancel all jobs that the caller sees as pending.

        Raises:
            StoreError: as `delete`.
        """
        await self._take_out(self._ledger.jobs(tenant), shown, touched)

    async def _take_out(self, jobs: Iterable[Job], shown: Collection[Job], touched: Touched = None) -> None:
        pending = [job for job in jobs if job not in shown]
        await self._stop(pending, _OPEN, touched, withdraws_running=True)
        self._confirm()

    async def interrupt(self, tenant: str | None, prompt_id: str, touched: Touched = None) -> None:
        """Interrupt a running job, or one that waits to run again, because its client still sees that as running."""
        await self._interrupt_each(self._named(tenant, [prompt_id]), touched)

    async def interrupt_shown(self, tenant: str, touched: Touched = None) -> None:
        """Interrupt the job that a tenant sees as running. If it sees several, interrupt the one that began first.

        ComfyUI stops the one prompt that it runs (server.py, post_interrupt).
        """
        await self._interrupt_each(self._ledger.shown_running(tenant)[:1], touched)

    async def _interrupt_each(self, jobs: Iterable[Job], touched: Touched = None) -> None:
        jobs = list(jobs)
        for job in jobs:
            if job.state in _NOT_STARTED and job.live.turn is not None and not job.is_ending:
                if touched is not None:
                    touched.append((job.tenant, job.prompt_id))
                self._interrupt_lost(job)
        await self._stop(jobs, (State.RUNNING,), touched)

    def _interrupt_lost(self, job: Job) -> None:
        """End a job that began on a lost backend, and now waits or is being sent to another backend."""
        former = job.assignment
        if former is not None:
            self._ledger.lose(job, for_good=True)
            backend = self._fleet.backends[former.backend]
            self._tasks.start(drop_orphans(self._ledger, backend, [former.upstream_id]), f"drop:{former.upstream_id}")
        self._completion.interrupt(job)

    async def cancel(self, tenant: str | None, prompt_ids: Iterable[str], touched: Touched = None) -> bool:
        """Cancel jobs that wait, are pending or run. Return True if any job was found in these states.

        Raises:
            StoreError: as `delete`.
        """
        found = await self._stop(self._named(tenant, prompt_ids), (*_NOT_STARTED, State.RUNNING), touched)
        self._confirm()
        return found

    async def _stop(
        self,
        jobs: Iterable[Job],
        states: tuple[State, ...],
        touched: Touched = None,
        *,
        withdraws_running: bool = False,
    ) -> bool:
        """Stop the jobs that are in one of these states. Return True if there was one.

        Each job is decided before any backend is asked. A job that had not started leaves the ledger at once. If its
        backend starts the prompt all the same, the gateway stops it there. With `withdraws_running`, a job that runs
        or whose result is being fetched leaves the ledger, too.
        """
        orphans: dict[str, list[str]] = {}
        orders: list[Coroutine[None, None, None]] = []
        found = withdrawn = False
        for job in jobs:
            if job.state not in states:
                continue
            found = True
            if touched is not None:
                touched.append((job.tenant, job.prompt_id))
            if job.state is State.RUNNING and not withdraws_running:
                job.interrupted = True
                orders.append(self._interrupt(job))
                continue
            withdrawn = True
            if (former := self._withdraw(job)) is not None:
                orphans.setdefault(former.backend, []).append(former.upstream_id)
        written = self._tasks.start(self._written(), "written") if withdrawn else None
        orders += [
            drop_orphans(self._ledger, self._fleet.backends[backend_name], ids) for backend_name, ids in orphans.items()
        ]
        if orders:
            await asyncio.wait([self._tasks.start(order, "order") for order in orders], timeout=ANSWER_WITHIN)
        if orphans:
            self._freed()
        if written is not None:
            await written
        return found

    async def _written(self) -> None:
        """Wait for the journal, unless the disk is full."""
        with contextlib.suppress(StoreError):
            await self._ledger.confirmed()

    def _confirm(self) -> None:
        """Raise StoreError while the journal can't be written, because a restart would bring cancelled jobs back."""
        if self._ledger.trouble:
            reason = "it is done, but a restart of the gateway would bring it back until it can be written"
            raise StoreError(f"{reason}: {self._ledger.trouble}")

    def _withdraw(self, job: Job) -> Assignment | None:
        """Cancel a job without a history entry. Return its former assignment."""
        if job.state is State.RUNNING and job.backend is not None:
            self._fleet.backends[job.backend].stopping = job.upstream_id
        former, removed = self._ledger.cancel(job)
        backend_name = former.backend if former is not None else None
        if job.live.start_told:
            self._tasks.start(self._tell_cancelled(job, removed), job.prompt_id)
        seconds = time.monotonic() - (job.started_at or job.accepted_at)
        log_phase(job, "failed", seconds, backend=backend_name, outcome="cancelled", failure=CANCELLED)
        return former

    async def _tell_cancelled(self, job: Job, removed: Awaitable[None]) -> None:
        """Tell the client of a cancellation after the journal has it."""
        try:
            await removed
        except StoreError as error:
            _log.error("journal_write_failed", **job.log_ids, error=str(error))
        self._completion.tell_cancelled(job)

    async def _interrupt(self, job: Job) -> None:
        """Interrupt a job. If its backend does not answer, try again while the job runs there."""
        attempt = job.attempts
        if job in self._interrupting:
            return
        self._interrupting.add(job)
        try:
            while job.state is State.RUNNING and job.attempts == attempt:
                try:
                    await interrupt(self._fleet.backends[job.backend or ""], job)
                    return
                except BackendError as error:
                    _log.warning("interrupt_failed", **job.log_ids, backend=job.backend, error=str(error))
                await asyncio.sleep(AGAIN_AFTER)
        finally:
            self._interrupting.discard(job)

    async def forget(self, tenant: str | None, prompt_ids: Iterable[str] | None, touched: Touched = None) -> None:
        """Delete history entries, or all that the caller sees if no ids are given. Backends delete theirs later.

        Raises:
            StoreError: as `delete`.
        """
        ids = None if prompt_ids is None else list(prompt_ids)
        tenants = {ended.tenant for ended in self._ledger.history.of(None)} if tenant is None else {tenant}
        there: dict[str, list[str]] = {}
        for own in tenants:
            for ended in self._ledger.forget(own, ids):
                if touched is not None:
                    touched.append((ended.tenant, ended.prompt_id))
                if ended.backend in self._fleet.backends and ended.upstream_id:
                    there.setdefault(ended.backend, []).append(ended.upstream_id)
        for backend_name, upstream_ids in there.items():
            # Keep the entry that showed that a backend's process is broken, because the fleet recognises that process
            # by it.
            upstream_ids = [each for each in upstream_ids if each != self._fleet.backends[backend_name].poisoned]
            self._history_deletion.forget(backend_name, upstream_ids)
        await self._written()
        self._confirm()
