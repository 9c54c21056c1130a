"""How long the history is kept: entries that are too old, or too many, leave memory and journal, a few a commit."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from gateway.jobs.history import History
from gateway.settings import RetentionSettings
from gateway.store.protocol import ClockReading, HistoryRemoval, Store, StoreError, TimeMark
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks

_log = logs.get("retention")

SWEEP_SECONDS = 600.0
# Their pages have to be read to be freed: more of them would hold up the prompts that share the commit.
BATCH = 100
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Retention:
    """Drops history entries by age and count.

    The store knows ages from the marks that each sweep leaves: an entry goes at the first sweep that finds a mark
    which is `max_age` old, and behind it. A wall clock that is set makes nothing older: marks move with it.
    """

    def __init__(self, settings: RetentionSettings, history: History, store: Store) -> None:
        self._settings = settings
        self._history = history
        self._store = store
        self._tasks = Tasks("retention")
        try:
            self._boot = _BOOT.read_text().strip()
        except OSError:
            # Not Linux: from one process to the next it can't be told.
            self._boot = uuid.uuid4().hex

    def start(self) -> None:
        """Begin to sweep, now and then again and again."""
        self._tasks.repeat(self._sweep_again, "sweep", min(SWEEP_SECONDS, self._settings.max_age / 4))

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    async def _sweep_again(self) -> None:
        try:
            await self.sweep(self._clocks())
        except StoreError as error:
            _log.error("sweeping", error=str(error))

    def _clocks(self) -> ClockReading:
        # It counts while the machine sleeps, too.
        uptime = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        return ClockReading(int(time.time() * 1000), int(uptime * 1000), self._boot)

    async def sweep(self, now: ClockReading) -> None:
        """Drop what is past `max_items`, and what ended `max_age` before `now`.

        Raises:
            StoreError: the journal can't be read or written.
        """
        while (excess := len(self._history) - self._settings.max_items) > 0:
            if not await self._drop(await self._store.oldest_history(min(excess, BATCH))):
                break
        await self._store.write([now])
        oldest = now.time - int(self._settings.max_age * 1000)
        while await self._drop(await self._store.oldest_history(BATCH, oldest)):
            pass
        await self._store.write([TimeMark(now.time)])

    async def _drop(self, keys: list[tuple[str, str]]) -> bool:
        for tenant, prompt_id in keys:
            self._history.remove(tenant, prompt_id)
        await self._store.write([HistoryRemoval(tenant, prompt_id) for tenant, prompt_id in keys])
        return bool(keys)
