"""A folder of a ComfyUI that is swept: its files, and their deletion. Links are never followed.

Each folder is opened by its name in the folder above it, without following links (openat, O_NOFOLLOW). So a folder that
becomes a link meanwhile leads nowhere, and no name leads out of the swept folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

# Deeper folders are left alone. Each folder on the way is open meanwhile.
MAX_DEPTH = 64
# The gateway's secret folders (`gateway/tenants/secret_names.py`). ComfyUI makes one again if a prompt needs it.
_SECRET = re.compile(r"[uo]/[0-9a-f]{32}/f")
# A secret folder is removed if it was empty for so long, because a prompt may be about to write into it.
EMPTY_SECONDS = 3600.0
# Maximum number of empty folders that a sweep removes, and of problems that it tells.
MAX_EMPTY = 100_000
MAX_PROBLEMS = 20
MAX_TIME_NS = 2**63
_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

# Errors for a file that is gone, or below a folder that is gone or became a link.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def is_supported() -> bool:
    """Return True if this system can delete a file without following links."""
    needed = {os.open, os.stat, os.unlink, os.rmdir}
    return hasattr(os, "O_NOFOLLOW") and needed <= os.supports_dir_fd and os.scandir in os.supports_fd


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file below a swept folder, as it was found. `subfolder` is its path there, with ``/`` between the parts."""

    subfolder: str
    filename: str
    size: int
    mtime_ns: int
    inode: int


class Outcome(Enum):
    """Outcome of a deletion: DELETED, CHANGED since the file was found, or FAILED."""

    DELETED = auto()
    CHANGED = auto()
    FAILED = auto()


class SweptFolder:
    """A folder with all that lies below it. Call `close` at the end.

    Args:
        path: the folder. If it is a link itself, its target is swept.

    Attributes:
        problems: sentences about folders and files that could not be read or deleted, the first ones.
        failures: the number of all of these.
        others: the number of links, special files, files with several names, and names that no client can ask for.
        empty: secret folders that were empty for long.

    Raises:
        OSError: the folder can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.problems: list[str] = []
        self.failures = 0
        self.others = 0
        self.empty: list[str] = []
        self._path = path
        self._root = os.open(path, _FLAGS & ~getattr(os, "O_NOFOLLOW", 0))
        self._device = os.fstat(self._root).st_dev

    def close(self) -> None:
        """Close the folder."""
        os.close(self._root)

    def files(self, now: float) -> Iterator[FoundFile]:
        """Yield the files. `now` is the time, in seconds since 1970."""
        yield from self._files_in(os.dup(self._root), "", 0, now)

    def _files_in(self, folder: int, path: str, depth: int, now: float) -> Iterator[FoundFile]:
        """Yield the files of an open folder, and close it."""
        try:
            is_empty = True
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_empty = False
                    yield from self._found(folder, path, entry.name, depth, now)
            if is_empty and _SECRET.fullmatch(path) and now - os.fstat(folder).st_mtime >= EMPTY_SECONDS:
                self.empty += [path] * (len(self.empty) < MAX_EMPTY)
        except OSError as error:
            self._note(path, error)
        finally:
            os.close(folder)

    def _found(self, folder: int, path: str, name: str, depth: int, now: float) -> Iterator[FoundFile]:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                if depth < MAX_DEPTH and found.st_dev == self._device and _is_plain(name):
                    below = os.open(name, _FLAGS, dir_fd=folder)
                    yield from self._files_in(below, f"{path}/{name}" if path else name, depth + 1, now)
                else:
                    self.others += 1
                return
        except OSError as error:
            # Say nothing of a file that was deleted meanwhile.
            if error.errno not in _GONE:
                self._note(f"{path}/{name}" if path else name, error)
            return
        if not self._is_sweepable(found) or not _is_plain(name):
            self.others += 1
            return
        yield FoundFile(path, name, found.st_size, found.st_mtime_ns, found.st_ino)

    def _is_sweepable(self, found: os.stat_result) -> bool:
        """Return True for a regular file of this file system with one name, and a time that the gateway can know."""
        is_own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_dev == self._device
        return is_own and 0 <= found.st_mtime_ns < MAX_TIME_NS

    def delete(self, file: FoundFile) -> Outcome:
        """Delete a file, unless it is another one by now."""
        try:
            with self._opened(file.subfolder) as folder:
                # Look right before the deletion, because a prompt may have written another file under the name.
                found = os.stat(file.filename, dir_fd=folder, follow_symlinks=False)
                now = (found.st_size, found.st_mtime_ns, found.st_ino)
                if now != (file.size, file.mtime_ns, file.inode) or not self._is_sweepable(found):
                    return Outcome.CHANGED
                os.unlink(file.filename, dir_fd=folder)
        except OSError as error:
            if error.errno in _GONE:
                return Outcome.CHANGED
            self._note(f"{file.subfolder}/{file.filename}" if file.subfolder else file.filename, error)
            return Outcome.FAILED
        return Outcome.DELETED

    def remove_empty(self) -> int:
        """Remove the empty secret folders, and return how many there were."""
        count = 0
        for path in self.empty:
            above, _, name = path.rpartition("/")
            top, _, secret = above.rpartition("/")
            with contextlib.suppress(OSError):
                # Only an empty folder can be removed (rmdir), so nothing is lost if a file came meanwhile.
                with self._opened(above) as folder:
                    os.rmdir(name, dir_fd=folder)
                count += 1
                with self._opened(top) as folder:
                    os.rmdir(secret, dir_fd=folder)
        return count

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        """Open a folder below this one, part by part."""
        folder = os.dup(self._root)
        try:
            for part in path.split("/") if path else ():
                below = os.open(part, _FLAGS, dir_fd=folder)
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    def _note(self, path: str, error: OSError) -> None:
        where = self._path / path if path else self._path
        self.failures += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{where}: {error.strerror or error}")


def _is_plain(name: str) -> bool:
    """Return True if a name can be sent to the gateway as it is. On Linux a name may hold any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\\" not in name
