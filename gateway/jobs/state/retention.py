"""Retention of the history: expired entries, and those past a limit, are deleted in small batches.

One reading of the wall clock alone deletes nothing, because the clock may be wrong at a machine's start.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from gateway.jobs.state.history import History
from gateway.settings import RetentionSettings
from gateway.store.protocol import ClockReading, HistoryRemoval, Store, StoreError, TimeMark
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.telemetry.times import HOLD_SECONDS, was_set

_log = logs.get("retention")

SWEEP_SECONDS = 600.0
# Entries deleted in one commit. More would delay the prompts that share the commit, because their pages must be read.
BATCH = 100
# If at least this many entries expire at once, a limit was lowered, and the log says so before they are deleted.
LARGE = 100
_BY_COUNT, _BY_AGE = "store.retention.max_items", "store.retention.max_age"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Retention:
    """Retention of history entries by age, count and bytes.

    The store knows ages from the marks that each sweep leaves. An entry is dropped at the first sweep that finds a mark
    which is `max_age` old and newer than the entry. Setting the wall clock makes no entry older: marks move with it.
    """

    def __init__(self, settings: RetentionSettings, history: History, store: Store) -> None:
        self._settings = settings
        self._history = history
        self._store = store
        self._hold_ms = min(HOLD_SECONDS, settings.max_age / 4) * 1000
        # The clocks' reading when the wall clock was last seen to be set.
        self._set_at: ClockReading | None = None
        self._tasks = Tasks("retention")
        try:
            self._boot = _BOOT.read_text().strip()
        except OSError:
            # If this is not Linux, use a random id, because restarts of the machine can't be detected.
            self._boot = uuid.uuid4().hex

    def start(self) -> None:
        """Sweep now, and then periodically."""
        self._tasks.repeat(self._sweep_again, "sweep", min(SWEEP_SECONDS, self._settings.max_age / 4))

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    async def _sweep_again(self) -> None:
        try:
            await self.turn(self._clocks())
        except StoreError as error:
            _log.error("history_sweep_failed", error=str(error))
        finally:
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        """Log how many entries have left the history since the last sweep, by the setting that was the reason."""
        for setting, count in self._history.take_dropped().items():
            if count:
                _log.info("history_expired", entries=count, setting=setting)

    def _clocks(self) -> ClockReading:
        # Use CLOCK_BOOTTIME, because it also counts while the machine sleeps.
        uptime = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        return ClockReading(int(time.time() * 1000), int(uptime * 1000), self._boot)

    async def turn(self, now: ClockReading) -> None:
        """Do one sweep, by age as well if the wall clock has been left alone for long enough.

        Raises:
            StoreError: the journal can't be read or written.
        """
        before = self._set_at
        if before is None or was_set((before.time - before.uptime) / 1000, (now.time - now.uptime) / 1000):
            self._set_at = before = now
        await self.sweep(now, by_age=now.uptime - before.uptime >= self._hold_ms)

    async def sweep(self, now: ClockReading, *, by_age: bool = True) -> None:
        """Drop entries past `max_items` and the limits of bytes; if `by_age`, also those older than `max_age`.

        Raises:
            StoreError: the journal can't be read or written.
        """
        excess = len(self._history) - self._settings.max_items
        if excess >= LARGE:
            _log.warning("history_expiring", entries=excess, setting=_BY_COUNT, limit=self._settings.max_items)
        while excess > 0:
            if not await self._drop(await self._store.oldest_history(min(excess, BATCH)), _BY_COUNT):
                break
            excess = len(self._history) - self._settings.max_items
        while dropped := self._history.drop_past_bytes(BATCH):
            await self._store.write(dropped)
        if not by_age:
            # Don't note the time, because marks with a wrong time would make entries too old, or too young.
            return
        await self._store.write([now])
        oldest = now.time - int(self._settings.max_age * 1000)
        while await self._drop(await self._store.oldest_history(BATCH, oldest), _BY_AGE):
            pass
        await self._store.write([TimeMark(now.time)])

    async def _drop(self, keys: list[tuple[str, str]], setting: str) -> bool:
        for tenant, prompt_id in keys:
            self._history.expire(tenant, prompt_id, setting)
        await self._store.write([HistoryRemoval(tenant, prompt_id) for tenant, prompt_id in keys])
        return bool(keys)
