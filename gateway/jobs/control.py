"""What a caller does to its jobs: cancel, interrupt, delete. Always the right one, and never another's.

As in ComfyUI, deleting takes only what has not started, interrupting only what runs, and an id that fits nothing is
no error (server.py, post_queue, post_interrupt, cancel_job_by_id).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from gateway.comfy.client import BackendError
from gateway.fleet.fleet import Fleet
from gateway.jobs.collector import Collector
from gateway.jobs.job import Job, State
from gateway.jobs.ledger import Ledger
from gateway.jobs.phases import log_phase
from gateway.jobs.upstream import drop_copies
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

_log = logs.get("jobs")

_NOT_STARTED = (State.ACCEPTED, State.WAITING, State.SENDING, State.PENDING)


class Control:
    """Callers' orders. A `tenant` of None is an admin, who may touch every job."""

    def __init__(self, ledger: Ledger, fleet: Fleet, collector: Collector) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._collector = collector
        self._tasks = Tasks("control")

    async def close(self) -> None:
        """End what is under way."""
        await self._tasks.close()

    def find(self, tenant: str | None, prompt_id: str) -> Job | None:
        """An open job that the caller may touch."""
        return self._ledger.find_any(prompt_id) if tenant is None else self._ledger.find(tenant, prompt_id)

    async def delete(self, tenant: str | None, prompt_ids: Iterable[str]) -> None:
        """Take jobs that have not started out of the queue."""
        await self._cancel([job for prompt_id in prompt_ids if (job := self.find(tenant, prompt_id))])

    async def clear(self, tenant: str | None) -> None:
        """Take all jobs that have not started out of the queue."""
        await self._cancel(self._ledger.jobs(tenant))

    async def _cancel(self, jobs: Iterable[Job]) -> bool:
        copies: dict[str, list[str]] = {}
        cancelled = False
        for job in jobs:
            if job.state not in _NOT_STARTED:
                continue
            upstream_id = job.upstream_id
            place = self._ledger.cancel(job)
            cancelled = True
            self._collector.tell_cancelled(job)
            log_phase(job, "failed", time.monotonic() - job.accepted_at, backend=place, outcome="cancelled")
            if place is not None:
                copies.setdefault(place, []).append(upstream_id)
        # It is out of the ledger by now. Should it have started over there meanwhile, it is stopped as it starts.
        await asyncio.gather(
            *(drop_copies(self._ledger, self._fleet.backends[place], ids) for place, ids in copies.items())
        )
        return cancelled

    async def interrupt(self, tenant: str | None, prompt_id: str | None) -> bool:
        """Interrupt a running job, or all that the caller runs. Returns whether there was one."""
        jobs = self._ledger.jobs(tenant) if prompt_id is None else [self.find(tenant, prompt_id)]
        running = [job for job in jobs if job is not None and job.state is State.RUNNING]
        await asyncio.gather(*(self._interrupt(job) for job in running))
        return bool(running)

    async def _interrupt(self, job: Job) -> None:
        backend = self._fleet.backends[job.backend or ""]
        try:
            await backend.client.interrupt(job.upstream_id)
        except BackendError as error:
            _log.warning("interrupt", prompt_id=job.prompt_id, backend=backend.name, error=str(error))

    async def cancel(self, tenant: str | None, prompt_id: str) -> bool:
        """Cancel a job whatever its state. Returns whether there was anything to cancel."""
        job = self.find(tenant, prompt_id)
        if job is None:
            return False
        if job.state in _NOT_STARTED:
            return await self._cancel([job])
        return await self.interrupt(tenant, prompt_id)

    async def forget(self, tenant: str | None, prompt_ids: Iterable[str] | None) -> None:
        """Delete history entries, all that the caller sees if no ids are given; later also on the backends.

        What a backend still holds of them is seen by nobody, so its answer is not waited for.
        """
        ids = None if prompt_ids is None else list(prompt_ids)
        tenants = {ended.tenant for ended in self._ledger.history.of(None)} if tenant is None else {tenant}
        there: dict[str, list[str]] = {}
        for own in tenants:
            for ended in self._ledger.forget(own, ids):
                if ended.backend in self._fleet.backends:
                    there.setdefault(ended.backend, []).append(ended.upstream_id)
        for place, upstream_ids in there.items():
            self._tasks.start(self._forget_there(place, upstream_ids), f"forget:{place}")

    async def _forget_there(self, place: str, upstream_ids: list[str]) -> None:
        try:
            await self._fleet.backends[place].client.delete_history(upstream_ids)
        except BackendError as error:
            _log.info("deleting history", backend=place, error=str(error))
