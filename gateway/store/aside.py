"""Blobs that nothing names: they are kept aside for a time before they are deleted.

A blob may be unknown because the journal was moved away for a while, and seem old because a clock was wrong. So the
time is counted by a clock of its own, which goes on only while a gateway serves from this folder: it can't be set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gateway.store.durable_rename import replace

# Of a file in the folder: the digest, and the seconds that the folder's clock showed when the blob came.
_NAME = re.compile(r"([0-9a-f]{64})\.(\d{1,15})")
_CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class _Kept:
    path: Path
    since: int
    size: int


class Aside:
    """A folder of blobs that wait to be named again, or deleted. For one thread at a time.

    All methods raise OSError if the disk fails.

    Args:
        directory: made when the first blob comes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._kept: dict[str, _Kept] = {}
        self._clock = 0.0
        self.bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._kept

    def open(self) -> None:
        """Read the files that an earlier run left."""
        self._kept, self.bytes = {}, 0
        try:
            self._clock = float(int((self._directory / _CLOCK).read_text()))
        except (FileNotFoundError, ValueError):
            self._clock = 0.0
        for path in sorted(self._directory.glob("*")) if self._directory.is_dir() else ():
            match = _NAME.fullmatch(path.name)
            if match:
                self._forget(match[1], delete=True)
                self._add(match[1], _Kept(path, int(match[2]), path.stat().st_size))
        # If the clock's file is lost, none of the blobs is older than the one that came last.
        self._clock = max([self._clock, *(float(kept.since) for kept in self._kept.values())])

    def put(self, path: Path) -> None:
        """Move a blob here; its file's name is its digest."""
        self._forget(path.name, delete=True)
        target = self._directory / f"{path.name}.{int(self._clock)}"
        replace(path, target)
        self._add(path.name, _Kept(target, int(self._clock), target.stat().st_size))

    def take(self, digest: str, target: Path) -> bool:
        """Move a blob back. Return False if it is not here."""
        kept = self._kept.get(digest)
        if kept is None:
            return False
        replace(kept.path, target)
        self._forget(digest, delete=False)
        return True

    def drop(self, digest: str) -> None:
        """Delete a blob, if it is here."""
        self._forget(digest, delete=True)

    def go_on(self, seconds: float) -> None:
        """Let the clock go on, because a gateway has served for so long."""
        self._clock += seconds
        if self._kept:
            fresh = self._directory / f"{_CLOCK}.new"
            fresh.write_text(str(int(self._clock)))
            replace(fresh, self._directory / _CLOCK)

    def delete_older(self, seconds: float) -> int:
        """Delete the blobs that have been here for longer. Return how many."""
        old = [digest for digest, kept in self._kept.items() if self._clock - kept.since > seconds]
        for digest in old:
            self.drop(digest)
        return len(old)

    def make_room(self, size: int) -> int:
        """Delete the blobs that have been here longest, until `size` bytes are free. Return the bytes freed."""
        freed = 0
        for digest, kept in sorted(self._kept.items(), key=lambda item: item[1].since):
            if freed >= size:
                break
            self.drop(digest)
            freed += kept.size
        return freed

    def _add(self, digest: str, kept: _Kept) -> None:
        self._kept[digest] = kept
        self.bytes += kept.size

    def _forget(self, digest: str, *, delete: bool) -> None:
        kept = self._kept.get(digest)
        if kept is not None:
            if delete:
                kept.path.unlink(missing_ok=True)
            del self._kept[digest]
            self.bytes -= kept.size
            if not self._kept:
                (self._directory / _CLOCK).unlink(missing_ok=True)
