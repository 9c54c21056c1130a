"""Files that the gateway knew on a backend and knows no more. Their bytes lie there still. Pure.

The gateway forgets a file if it knows too many, or if its history entry was deleted. Such a file may be deleted on its
backend after a time. A file that its owner deleted is no forgotten file (`deleted.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from gateway.comfy.file_refs import FileRef
from gateway.files.identity import CACHED, GONE, UNTOLD
from gateway.store.forgotten_records import ForgottenChange, ForgottenRecord, ForgottenRemoval

MAX_FORGOTTEN = 100_000
MAX_DROPPED = 10


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A forgotten file: its ETag, and the time at which it was forgotten, in milliseconds since 1970."""

    etag: str
    forgotten_at: int


class ForgottenFiles:
    """Forgotten files, the newest.

    Methods note changes to persist, and write nothing. The caller takes the changes, and writes them in the same commit
    as the removal of the files' names.

    Args:
        maximum: maximum number of files to remember, of all backends together.
    """

    def __init__(self, maximum: int = MAX_FORGOTTEN) -> None:
        self._maximum = maximum
        # In the order in which they were forgotten.
        self._known: dict[tuple[str, FileRef], Forgotten] = {}
        self._changes: list[ForgottenChange] = []

    def __len__(self) -> int:
        return len(self._known)

    def add(self, backend: str, ref: FileRef, etag: str | None) -> None:
        """Remember a forgotten file. A file whose ETag is unknown is not remembered, because nothing identifies it."""
        if etag is None or etag in (UNTOLD, GONE, CACHED):
            return
        key, now = (backend, ref), int(time.time() * 1000)
        self._known.pop(key, None)
        self._known[key] = Forgotten(etag, now)
        self._changes.append(ForgottenRecord(backend, ref.kind, ref.subfolder, ref.filename, etag, now))
        # A few at a time, because after a lower maximum there may be many.
        for _ in range(min(max(len(self._known) - self._maximum, 0), MAX_DROPPED)):
            self.drop(*next(iter(self._known)))

    def drop(self, backend: str, ref: FileRef) -> None:
        """Remember a file no more."""
        if self._known.pop((backend, ref), None) is not None:
            self._changes.append(ForgottenRemoval(backend, ref.kind, ref.subfolder, ref.filename))

    def take_changes(self) -> list[ForgottenChange]:
        """Return the changes since the last call, which the caller must write."""
        changes, self._changes = self._changes, []
        return changes

    def restore(self, record: ForgottenRecord) -> None:
        """Put back a file that an earlier run remembered."""
        ref = FileRef(record.kind, record.subfolder, record.filename)
        self._known[record.backend, ref] = Forgotten(record.etag, record.forgotten_at)

    def find(self, backend: str, ref: FileRef) -> Forgotten | None:
        """Return the forgotten file of this name on a backend; None if there is none."""
        return self._known.get((backend, ref))
