"""The lines that tell an operator that the journal can't be written, and that it is well again: one pair a trouble."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.telemetry import logs

_log = logs.get("store")

AFFECTED = (
    "new prompts and uploads are refused with 503; jobs on the backends run on, and what becomes of them is kept in"
    " memory until it can be written"
)
# A full disk takes a small write now and then: the journal is well if it takes all for so long, and for much longer
# if it was called well not long ago.
WELL_SECONDS = 2.0
RELAPSE_SECONDS = 60.0


class JournalHealth:
    """Tells of a journal's troubles, each once, however often a write is tried."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_told = False
        self._well: asyncio.TimerHandle | None = None
        self._told_well_at: float | None = None

    def note(self, trouble: str, *, is_written: bool) -> None:
        """Take note of a commit: why the journal can't be written (or an empty text), and whether all was written."""
        if trouble:
            self.close()
            if not self._is_told:
                self._is_told = True
                path = str(self._directory.resolve())
                _log.error("journal_unwritable", reason=trouble, affected=AFFECTED, data_dir=path)
        elif is_written and self._is_told and self._well is None:
            loop = asyncio.get_running_loop()
            is_relapse = self._told_well_at is not None and loop.time() - self._told_well_at < RELAPSE_SECONDS
            self._well = loop.call_later(RELAPSE_SECONDS if is_relapse else WELL_SECONDS, self._tell_well)

    def _tell_well(self) -> None:
        self._is_told, self._well = False, None
        self._told_well_at = asyncio.get_running_loop().time()
        _log.info("journal_writable", data_dir=str(self._directory.resolve()))

    def close(self) -> None:
        """Wait no more to call it well."""
        if self._well is not None:
            self._well.cancel()
            self._well = None
