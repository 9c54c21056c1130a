"""A disk that is full, for one process or for all: what is here needs no privileges, save where it says so."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

# The words of util-linux, BusyBox and the kernel for EPERM and EACCES.
_FORBIDDEN = ("superuser", "permission denied", "not permitted", "are you root")


def fill(pid: int, size: int) -> None:
    """From now on the process can't make a file longer than `size` bytes: its writes beyond fail (EFBIG)."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def free(pid: int) -> None:
    """There is room again."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def full(pid: int, size: int) -> Iterator[None]:
    """A disk that is full meanwhile."""
    fill(pid, size)
    try:
        yield
    finally:
        free(pid)


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, so large. For root in a container that may mount.

    Raises:
        PermissionError: this process may not mount.
        OSError: the mount failed for another reason.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError as error:
        raise PermissionError("there is no mount") from error
    if done.returncode:
        # If the kernel or mount itself refuses, say so by the type, because only then a test may be skipped.
        is_forbidden = any(words in done.stderr.lower() for words in _FORBIDDEN)
        raise (PermissionError if is_forbidden else OSError)(done.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def stuff(place: Path) -> Path:
    """Fill a file system to its last byte; unlink what is returned to free it."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    os.sync()
    return filler
