"""History entries that take too long to read in one piece, up to `history.max_result`.

As for events (`large_events.py`), a process apart cuts out the long parts. The rest is handled like all entries. Then
a process puts the long parts back, and compresses the entry for the journal.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from gateway.comfy import json_codec
from gateway.comfy.backend_errors import UnreadableEntry
from gateway.comfy.long_parts import without_marks
from gateway.comfy.responses import LEFT_OUT, MAX_INLINE, HistoryEntry, checked
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.parsing.json_reader import JsonReader, NotRead, TakesTooMuch
from gateway.jobs.parsing.reader_process import Changes, CutParts, FillParts
from gateway.jobs.state.job import Assignment, Job
from gateway.store.spool import Bulk, Lost, Spool
from gateway.telemetry import logs

_log = logs.get("results")
# The tenant of the spool's files of entries that are being read: none.
_NOBODY = ""


@dataclass(frozen=True, slots=True)
class LargeEntry:
    """Entry whose long parts are in a file. The file lasts as long as this object."""

    cut: CutParts
    file: Bulk

    def without_marks(self, said: bytes) -> bytes:
        """Return JSON with a word where a long part was."""
        return without_marks(said, self.cut.mark)


class LargeEntries:
    """Reader of large entries."""

    def __init__(self, reader: JsonReader, spool: Spool, outputs: Outputs) -> None:
        self._reader = reader
        self._spool = spool
        self._outputs = outputs

    async def cut(self, job: Job, found: HistoryEntry) -> tuple[HistoryEntry, LargeEntry | None]:
        """Return an entry that is short enough for one step, and its long parts, None if it has none.

        Raises:
            UnreadableEntry: the entry can't be read.
        """
        if not found.large:
            return found, None
        try:
            path = await self._spool.store(found.large)
            size = sum(map(len, found.large))
            large = LargeEntry(
                CutParts(str(path), secrets.token_hex(12), MAX_INLINE, is_event=False),
                self._spool.adopt(_NOBODY, path, size),
            )
            left = await self._reader.cut(job.tenant, large.cut)
            if not left:
                raise UnreadableEntry(f"its result of {size} bytes has too many values, or is no JSON", is_final=True)
            entry = read_result(found, left)
        except (Lost, NotRead) as error:
            is_final = isinstance(error, TakesTooMuch)
            raise UnreadableEntry(f"its history entry can't be read: {error}", is_final=is_final) from error
        return entry, large

    async def packed(self, job: Job, large: LargeEntry, said: bytes) -> tuple[bytes, bytes]:
        """Return an entry for the journal as (plain, compressed), of which one is empty."""
        assignment = job.assignment
        target = self._spool.new_path()
        try:
            changes = changes_for(job, assignment, self._outputs)
            order = FillParts(large.cut, str(target), changes, is_packed=True)
            size = await self._reader.fill(job.tenant, order, said)
            return b"", await self._spool.read(target, 0, size)
        except (Lost, NotRead) as error:
            _log.error("outputs_left_out", **job.log_ids, tenant=job.tenant, reason=str(error))
            reason = json_codec.dumps(f"long texts and lists, for which a … stands: {error}")
            return b'%b,"%b":%b}' % (large.without_marks(said)[:-1], LEFT_OUT.encode(), reason), b""
        finally:
            self._spool.discard(Path(target))


def read_result(found: HistoryEntry, left: bytes) -> HistoryEntry:
    """Return an entry with the rest of its result, without the long parts.

    Raises:
        UnreadableEntry: the entry does not have ComfyUI's form.
    """
    try:
        return HistoryEntry(checked(found.entry | json_codec.loads(left)), json_codec.encoder_for(left))
    except (ValueError, TypeError) as error:
        raise UnreadableEntry(f"its history entry can't be read: {error}", is_final=True) from error


def changes_for(job: Job, assignment: Assignment | None, outputs: Outputs) -> Changes:
    """Return the changes that `EventRelay` and `Completion` make in texts that they read themselves."""
    shown = job.prompt_id.encode()
    replaced = [(added.encode(), json_codec.dumps(saver)[1:-1]) for added, saver in (job.live.added or {}).items()]
    if assignment is not None:
        replaced += [(own.encode(), shown) for own in {assignment.upstream_id, assignment.mark} if own]
    censor = job.submission.censor() if job.submission.needs_secrets else None
    return Changes(tuple(replaced), dict(outputs.names_of(job)), censor)
