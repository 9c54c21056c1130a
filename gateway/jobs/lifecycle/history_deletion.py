"""Delete history entries on backends: a delete that a backend did not confirm is tried again. Kept in memory alone.

What a backend still holds of a deleted entry is shown to nobody, so nobody waits for it. A backend that is started
again has forgotten all entries, and one that is not forgets the oldest of 10,000 (execution.py, PromptQueue).
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

# Of more, the oldest are left on the backend.
MAX_WAITING = 10_000
MAX_AT_ONCE = 500
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 60.0
# After so long a delete is given up: such a backend does not delete at all.
GIVE_UP_SECONDS = 3600.0


class HistoryDeletion:
    """Deletes entries on backends, each backend on its own."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._tasks = Tasks("history_deletion")
        # By backend, each id with the time at which it is given up (monotonic seconds), the oldest first.
        self._waiting: dict[str, dict[str, float]] = {}
        self._connected: dict[str, asyncio.Event] = {}

    async def close(self) -> None:
        """Stop. What was not deleted stays on its backend."""
        await self._tasks.close()

    def forget(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """Delete entries on a backend."""
        is_idle = backend not in self._waiting
        waiting = self._waiting.setdefault(backend, {})
        waiting.update(dict.fromkeys(upstream_ids, time.monotonic() + GIVE_UP_SECONDS))
        while len(waiting) > MAX_WAITING:
            del waiting[next(iter(waiting))]
        if is_idle:
            self._connected[backend] = asyncio.Event()
            self._tasks.start(self._delete(backend, waiting), backend)

    def connected(self, backend: str) -> None:
        """Try again at once: the backend has come back."""
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
    """Drop the ids that are tried no more."""
    for upstream_id in [each for each, until in waiting.items() if until <= now]:
        del waiting[upstream_id]
