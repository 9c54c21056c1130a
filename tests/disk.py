"""A disk that is full, for one process or for all: what is here needs no privileges, save where it says so."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path


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
        PermissionError: this process may not.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PermissionError("there is no mount") from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())
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
