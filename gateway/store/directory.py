"""The data directory: one process at a time has it, and nobody else on the machine reads it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import IO

from gateway.store.protocol import StoreError
from gateway.telemetry import logs

_log = logs.get("store")

LOCK_NAME = "gateway.lock"
# Rights to the data directory that are nobody's but its owner's.
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def take(directory: Path) -> IO[str]:
    """Make the directory if need be, and take it for this process until what is returned is closed.

    Raises:
        StoreError: another process has it, or it can't be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(directory)
        lock = (directory / LOCK_NAME).open("w")
    except OSError as error:
        raise StoreError(f"{named(directory)} can't be used as data directory: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if not isinstance(error, BlockingIOError):
            raise StoreError(f"{named(directory)} can't be used as data directory: {error.strerror}") from error
        raise StoreError(
            f"{named(directory)} is in use by another gateway; give each gateway a data directory of its own"
        ) from error
    return lock


def is_taken(directory: Path) -> bool:
    """Return True if a gateway has the directory now. Nothing is made or changed.

    Raises:
        StoreError: `take` would refuse it.
    """
    try:
        if not directory.exists():
            parent = next(parent for parent in directory.absolute().parents if parent.exists())
            _refuse_unwritable(parent)
            return False
        if not directory.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        status = directory.stat()
        if status.st_mode & OTHERS and os.geteuid() not in (0, status.st_uid):
            raise _open_to_others(directory, stat.S_IMODE(status.st_mode), os.strerror(errno.EPERM))
        _refuse_unwritable(directory)
        path = directory / LOCK_NAME
        if not path.exists():
            return False
        with path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError as error:
        raise StoreError(f"{named(directory)} can't be used as data directory: {error.strerror}") from error


def _refuse_unwritable(directory: Path) -> None:
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    effective = os.access in os.supports_effective_ids
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _open_to_others(directory: Path, mode: int, reason: str | None) -> StoreError:
    found = f"{named(directory)} may be read by other users of this machine (mode {mode:04o})"
    advice = f"chmod 700 it, or set StateDirectoryMode=0700 in a systemd unit ({reason})"
    return StoreError(f"{found}, and prompts and images are in it: {advice}")


def named(directory: Path) -> str:
    """Return a data directory as messages name it: where it is, and the setting that says so."""
    return f"{directory.resolve()} (data_dir)"


def _close_to_others(directory: Path) -> None:
    """Take others' rights to a data directory away: prompts, pictures and the names of keys are in it.

    Raises:
        StoreError: another user made it, and left it open.
    """
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not mode & OTHERS:
        return
    try:
        directory.chmod(mode & ~OTHERS)
    except OSError as error:
        raise _open_to_others(directory, mode, error.strerror) from error
    _log.warning("data_dir_closed", data_dir=str(directory.resolve()), mode_before=f"{mode:04o}")
