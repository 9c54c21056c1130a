"""Schedule retries of jobs whose backend was lost, or that came to nothing there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection

from gateway.fleet.fleet import Fleet
from gateway.jobs.state.job import Job
from gateway.jobs.state.transitions import State
from gateway.settings import DispatchSettings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks


def backoff(losses: int, luck: float, first: float, maximum: float) -> float:
    """Return the seconds until a job is retried that came to nothing `losses` times (from 1).

    `first` is doubled with each loss up to `maximum`. Of that, `luck` (0 to 1) takes between half and all, so that jobs
    which several gateways lost together do not come back together.
    """
    return min(first * 2.0 ** min(losses - 1, 60), maximum) * (0.5 + 0.5 * luck)


class Retries:
    """Schedule of retries.

    Args:
        wake: called when a job may be sent.
    """

    def __init__(self, fleet: Fleet, settings: DispatchSettings, metrics: Metrics, wake: Callable[[], None]) -> None:
        self._fleet = fleet
        self._settings = settings
        self._metrics = metrics
        self._wake = wake
        self._tasks = Tasks("retries")

    async def close(self) -> None:
        """Stop scheduling."""
        await self._tasks.close()

    def later(self, jobs: Collection[Job], backend_name: str, reason: str, *, at_once: bool = False) -> None:
        """Schedule retries of jobs that a backend had. A first retry goes at once if another is up, or if `at_once`.

        Jobs that were lost together share a pause, so that the dispatcher sends the oldest first.
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
        """Restart the pause of a waiting job of an earlier run that came to nothing more than once.

        The time that it has paused already is not known. The first probe after the pause sends it.
        """
        if job.state is State.WAITING and job.attempts > 1:
            luck = random.random()
            pause = backoff(job.attempts, luck, self._settings.backoff, self._settings.max_backoff)
            job.not_before = time.monotonic() + pause

    async def _wake_after(self, pause: float) -> None:
        await asyncio.sleep(pause)
        self._wake()
