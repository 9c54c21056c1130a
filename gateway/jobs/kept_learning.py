"""Keep what was learned of runs over restarts, as lines of JSON: each is a name and rows (`Learning.parts`).

With thousands of signatures the record has megabytes. It is made and read in steps, and a large one is written less
often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator

from gateway.comfy import json_codec
from gateway.jobs.scheduling.learning import Learning
from gateway.store.learned_records import LearnedRecord
from gateway.store.protocol import Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks, in_turns

_log = logs.get("routing")

WRITE_SECONDS = 60.0
# A record of more bytes than this a second, since the last one, waits longer.
BYTES_PER_SECOND = 10_000


def restoring(learning: Learning, record: bytes) -> Generator[None, None, int]:
    """Read a record in steps, and return the number of damaged lines, which are left out."""
    damaged = 0
    for line in record.split(b"\n") if record else ():
        try:
            part = json_codec.loads(line)
        except json_codec.MalformedJson:
            part = None
        if isinstance(part, list) and len(part) == 2:
            learning.restore_part(*part)
        else:
            damaged += 1
        yield
    return damaged


class KeptLearning:
    """Learned times in the store. Call `restore` and `start`, and `close` at the end."""

    def __init__(self, store: Store, learning: Learning) -> None:
        self._store = store
        self._learning = learning
        self._written = 0
        self._bytes = 0
        self._writing = asyncio.Lock()
        self._tasks = Tasks("learning")

    async def restore(self) -> None:
        """Read what earlier runs of the gateway learned. Leave damaged lines out."""
        if damaged := await in_turns(restoring(self._learning, await self._store.learned())):
            _log.warning("learned_times_damaged", lines=damaged)
        self._written = self._learning.changes

    def start(self) -> None:
        """Begin to write whenever something was learned."""
        self._tasks.repeat(self._write_changes, "write", self._pause, at_once=False)

    async def close(self) -> None:
        """Write a last time."""
        await self._tasks.close()
        await self._write_changes()

    async def write(self) -> None:
        """Write what is known now.

        Raises:
            StoreError: the journal takes nothing now. The next round tries again.
        """
        # One at a time, because an older record must not replace a newer one.
        async with self._writing:
            changes = self._learning.changes
            record = await in_turns(self._recording())
            self._bytes = len(record)
            # Not as a write that is owed, because the next one holds all of this one.
            await self._store.try_write([LearnedRecord(record)])
            self._written = changes

    def _recording(self) -> Generator[None, None, bytes]:
        lines = []
        for part in self._learning.parts():
            lines.append(json_codec.dumps(part))
            yield
        return b"\n".join(lines)

    async def _write_changes(self) -> None:
        if self._learning.changes == self._written:
            return
        try:
            await self.write()
        except StoreError as error:
            _log.info("learned_times_not_written", error=str(error))

    def _pause(self) -> float:
        return max(WRITE_SECONDS, self._bytes / BYTES_PER_SECOND)
