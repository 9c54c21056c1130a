"""Quarantine of jobs whose graph is poisonous: none of them starts on a backend, if it is remembered, they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.poisonous import PoisonousGraphs
from gateway.jobs.state.transitions import State
from gateway.telemetry.tasks import TURN_SECONDS, Tasks

MAX_LOOK_SECONDS = 0.02


class Quarantine:
    """Quarantine of accepted jobs. `PoisonousGraphs` refuses new prompts.

    Args:
        fail: ends a job that no backend may run, with a reason and an error type.
        take: takes a job back from the backend on which it has not started.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        poisonous: PoisonousGraphs,
        fail: Callable[[Job, str, str], None],
        take: Callable[[Job, Backend], None],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._poisonous = poisonous
        self._fail = fail
        self._take = take
        self._tasks = Tasks("quarantine")

    async def close(self) -> None:
        """Stop. The next start ends the jobs that are left."""
        await self._tasks.close()

    def admits(self, job: Job) -> bool:
        """Return True if a job may be sent. A suspect's retry avoids the backends that its graph has cost already."""
        graph = self._poisonous.find(job)
        if graph is None:
            return True
        job.avoid |= frozenset(graph.backends)
        return not self._poisonous.is_held(job)

    def ends(self, job: Job) -> bool:
        """End a job whose graph is remembered. Return True if it is."""
        end = self._poisonous.end_of(job)
        if end is not None:
            self._fail(job, *end)
        return end is not None

    def look(self) -> None:
        """Take held jobs back from backends. If a graph is remembered anew, end the jobs that wait with it."""
        if not len(self._poisonous):
            return
        self._poisonous.expire(time.time())
        until = time.monotonic() + MAX_LOOK_SECONDS
        for backend in self._fleet.backends.values():
            if backend.connected:
                self._look_on(backend, until)
        if self._poisonous.has_news:
            self._poisonous.has_news = False
            self._tasks.start(self._end_waiting(), "end")

    def _look_on(self, backend: Backend, until: float) -> None:
        for job in self._ledger.jobs_on(backend.name):
            if time.monotonic() > until:
                # Leave the rest to the next look, because the digests of large graphs take long, and are then known.
                return
            if job.state is State.PENDING and not job.recalled and self._must_leave(job):
                self._take(job, backend)

    def _must_leave(self, job: Job) -> bool:
        if self._poisonous.end_of(job) is not None:
            return True
        # If a restart lost the job's partner keys, leave a suspect's job there, because it can't be sent again.
        return self._poisonous.is_held(job) and not job.submission.lacks_secrets

    async def _end_waiting(self) -> None:
        """End waiting jobs with remembered graphs, also while no backend has room. Leave turns for other tasks."""
        began = time.monotonic()
        for job in self._ledger.waiting.jobs():
            if time.monotonic() - began > TURN_SECONDS:
                await asyncio.sleep(0)
                began = time.monotonic()
            if job.state is State.WAITING and not job.is_ending:
                self.ends(job)
