"""Signals about the process itself that somebody has to measure: the event loop's delay, the room on the disk."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from gateway.telemetry.metrics import Metrics, one
from gateway.telemetry.tasks import Tasks

LOOP_SECONDS = 0.25
DISK_SECONDS = 5.0


class ProcessSignals:
    """Tasks that measure. Call `start`, and `close` at the end."""

    def __init__(self, metrics: Metrics, data_dir: Path) -> None:
        self._metrics = metrics
        self._data_dir = data_dir
        self._tasks = Tasks("signals")
        self._woke_at = 0.0

    def start(self) -> None:
        """Begin to measure."""
        self._woke_at = time.monotonic()
        self._metrics.tasks.set_function(lambda: len(asyncio.all_tasks()))
        self._tasks.repeat(self._measure_loop, "loop", 0.0)
        self._tasks.repeat(self._measure_disk, "disk", DISK_SECONDS)

    async def close(self) -> None:
        """Stop measuring."""
        await self._tasks.close()

    async def _measure_loop(self) -> None:
        # Not the loop's own clock, because uvloop's stands still while a callback runs.
        await asyncio.sleep(LOOP_SECONDS)
        # Count from the wake before, because the loop may be held up between two calls as well.
        before, self._woke_at = self._woke_at, time.monotonic()
        self._metrics.loop_delay.observe(max(self._woke_at - before - LOOP_SECONDS, 0.0))

    async def _measure_disk(self) -> None:
        # In a thread, because a network's file system may hang.
        usage = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
        self._metrics.data_dir_free.read = lambda: one(usage.free)
        self._metrics.data_dir_size.read = lambda: one(usage.total)
