"""Schedule retries of jobs whose backend was lost, or that came to nothing there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection

from gateway.fleet.fleet import Fleet
from gateway.jobs.state.job import Job, State
from gateway.settings import DispatchSettings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks


def backoff(losses: int, luck: float, first: float, maximum: float) -> float:
    """Seconds until a job goes again that came to nothing so many times (from 1).

    `first`, doubled with each loss up to `maximum`, and of that between the half and the whole, as `luck` (0 to 1) has
    it: what several gateways lost together does not come back together.
    """
    return min(first * 2.0 ** min(losses - 1, 60), maximum) * (0.5 + 0.5 * luck)


class Retries:
    """Lets jobs go again in time.

    Args:
        wake: told that a job may go.
    """

    def __init__(self, fleet: Fleet, settings: DispatchSettings, metrics: Metrics, wake: Callable[[], None]) -> None:
        self._fleet = fleet
        self._settings = settings
        self._metrics = metrics
        self._wake = wake
        self._tasks = Tasks("retries")

    async def close(self) -> None:
        """Let nothing go any more."""
        await self._tasks.close()

    def later(self, jobs: Collection[Job], backend_name: str, reason: str, *, at_once: bool = False) -> None:
        """These wait again, which a backend had. The first time they go at once if another backend is up, or `at_once`.

        Those that were lost together go together, so that the dispatcher sends the oldest first.
        """
        luck, now = random.random(), time.monotonic()
        others = at_once or any(other.eligible for other in self._fleet.backends.values() if other.name != backend_name)
        pauses = set()
        for job in jobs:
            self._metrics.retries.labels(backend_name, reason).inc()
            if job.attempts > 1 or not others:
                pause = backoff(job.attempts, luck, self._settings.backoff, self._settings.max_backoff)
                job.not_before = now + pause
                pauses.add(pause)
        for pause in pauses:
            self._tasks.start(self._wake_after(pause), f"after {pause:.1f} s")
        if jobs:
            self._wake()

    def resume(self, job: Job) -> None:
        """A job of an earlier run that came to nothing more than once: its pause begins again.

        How long it has paused is not known; it goes with the first probe after that.
        """
        if job.state is State.WAITING and job.attempts > 1:
            luck = random.random()
            pause = backoff(job.attempts, luck, self._settings.backoff, self._settings.max_backoff)
            job.not_before = time.monotonic() + pause

    async def _wake_after(self, pause: float) -> None:
        await asyncio.sleep(pause)
        self._wake()
