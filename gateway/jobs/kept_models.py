"""Keep the models' slots in metrics over restarts, so that a series goes on under its name."""

from __future__ import annotations

from typing import Any

from gateway.comfy import json_codec
from gateway.store.protocol import ModelNames, Store
from gateway.telemetry.job_times import JobTimes
from gateway.telemetry.tasks import Tasks

WRITE_SECONDS = 60.0
# Seconds by which a written time of use may be too old.
MAX_AGE = 3600.0


class KeptModels:
    """Slots of models in the store. Call `restore` and `start`, and `close` at the end."""

    def __init__(self, store: Store, times: JobTimes) -> None:
        self._store = store
        self._times = times
        self._written: dict[str, float] = {}
        self._tasks = Tasks("models")

    async def restore(self) -> None:
        """Read the slots of an earlier run."""
        try:
            record: Any = json_codec.loads(await self._store.model_names())
        except json_codec.MalformedJson:
            return
        self._times.restore(record)
        self._written = dict(self._times.slots.used)

    def start(self) -> None:
        """Begin to write the slots whenever they have changed."""
        self._tasks.repeat(self._write_changes, "write", WRITE_SECONDS, at_once=False)

    async def close(self) -> None:
        """Write the slots a last time."""
        await self._tasks.close()
        if self._times.slots.used != self._written:
            self._write()

    async def _write_changes(self) -> None:
        used = self._times.slots.used
        if used.keys() != self._written.keys() or any(at - self._written[name] > MAX_AGE for name, at in used.items()):
            self._write()

    def _write(self) -> None:
        self._written = dict(self._times.slots.used)
        self._store.write([ModelNames(json_codec.dumps(self._times.record()).decode())])
