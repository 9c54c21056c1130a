"""Retention of the history: expired entries, and those past a limit, are deleted in small batches.

No single look at the wall clock deletes anything: it may be wrong at a machine's start, until it is set.
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

_log = logs.get("retention")

SWEEP_SECONDS = 600.0
# Their pages have to be read to be freed: more of them would hold up the prompts that share the commit.
BATCH = 100
# So many at once are more than time and use bring about: a limit was made smaller, and a line says so before they go.
LARGE = 100
_BY_COUNT, _BY_AGE = "store.retention.max_items", "store.retention.max_age"
# A process believes the wall clock once nobody has set it for so long.
HOLD_SECONDS = 3600.0
SET_BY_MS = 60_000
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Retention:
    """Drops history entries by age, count and bytes.

    The store knows ages from the marks that each sweep leaves: an entry goes at the first sweep that finds a mark
    which is `max_age` old, and behind it. A wall clock that is set makes nothing older: marks move with it.
    """

    def __init__(self, settings: RetentionSettings, history: History, store: Store) -> None:
        self._settings = settings
        self._history = history
        self._store = store
        self._hold_ms = min(HOLD_SECONDS, settings.max_age / 4) * 1000
        # When the wall clock was last seen to be set, and how far it was from the time since the machine's start then.
        self._set_at: ClockReading | None = None
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
        # It counts while the machine sleeps, too.
        uptime = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        return ClockReading(int(time.time() * 1000), int(uptime * 1000), self._boot)

    async def turn(self, now: ClockReading) -> None:
        """Do one sweep, by age as well if the wall clock has been left alone for long enough.

        Raises:
            StoreError: the journal can't be read or written.
        """
        before = self._set_at
        if before is None or abs((now.time - now.uptime) - (before.time - before.uptime)) > SET_BY_MS:
            self._set_at = before = now
        await self.sweep(now, by_age=now.uptime - before.uptime >= self._hold_ms)

    async def sweep(self, now: ClockReading, *, by_age: bool = True) -> None:
        """Drop what is past `max_items` and the limits of bytes, and `by_age` what ended `max_age` before `now`.

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
            # Nor is the time noted: marks of a wrong time would make entries old, or young.
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
