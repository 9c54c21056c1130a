"""Delete history entries on backends, and retry deletes that a backend did not confirm. Kept in memory alone.

No caller waits for this, because no client sees a backend's own entries. A restarted backend has forgotten all of its
entries, and any other forgets the oldest past 10,000 (execution.py, PromptQueue).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice

from gateway.comfy.client import BackendError
from gateway.fleet.fleet import Fleet
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks, pause

_log = logs.get("jobs")

# Maximum entries that wait for a backend; past it the oldest are left there.
MAX_WAITING = 10_000
MAX_AT_ONCE = 500
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 60.0
# A delete is given up after this long, because such a backend deletes nothing at all.
GIVE_UP_SECONDS = 3600.0


class HistoryDeletion:
    """Queue of deletes for each backend."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._tasks = Tasks("history_deletion")
        # By backend: each id with the time at which its delete is given up (monotonic seconds), the oldest first.
        self._waiting: dict[str, dict[str, float]] = {}
        self._connected: dict[str, asyncio.Event] = {}

    async def close(self) -> None:
        """Stop. Entries that were not deleted stay on their backends."""
        await self._tasks.close()

    def forget(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """Queue deletes of entries on a backend."""
        is_idle = backend not in self._waiting
        waiting = self._waiting.setdefault(backend, {})
        waiting.update(dict.fromkeys(upstream_ids, time.monotonic() + GIVE_UP_SECONDS))
        while len(waiting) > MAX_WAITING:
            del waiting[next(iter(waiting))]
        if is_idle:
            self._connected[backend] = asyncio.Event()
            self._tasks.start(self._delete(backend, waiting), backend)

    def connected(self, backend: str) -> None:
        """Retry at once, because the backend has come back."""
        if (event := self._connected.get(backend)) is not None:
            event.set()

    async def _delete(self, backend: str, waiting: dict[str, float]) -> None:
        seconds, connected = FIRST_PAUSE_SECONDS, self._connected[backend]
        try:
            while waiting:
                some = list(islice(waiting, MAX_AT_ONCE))
                try:
                    await self._fleet.backends[backend].client.delete_history(some)
                except BackendError as error:
                    _log.info("history_deletion_failed", backend=backend, error=str(error), again_in_seconds=seconds)
                    connected.clear()
                    await pause(seconds, connected)
                    seconds = min(seconds * 2, MAX_PAUSE_SECONDS)
                    drop_late(waiting, time.monotonic())
                else:
                    seconds = FIRST_PAUSE_SECONDS
                    for upstream_id in some:
                        waiting.pop(upstream_id, None)
        finally:
            del self._waiting[backend], self._connected[backend]


def drop_late(waiting: dict[str, float], now: float) -> None:
    """Drop the ids whose time is up."""
    for upstream_id in [each for each, until in waiting.items() if until <= now]:
        del waiting[upstream_id]
