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
# Bytes that large results which wait on disk leave free, because the journal may be on the same one.
KEPT_FREE = 256 * 2**20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_WITHOUT_NAMELESS_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})


def take(directory: Path) -> IO[str]:
    """Make the directory if need be, and take it for this process until the returned file is closed.

    Raises:
        StoreError: another process has it, or it can't be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(directory)
        lock = (directory / LOCK_NAME).open("w")
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if not isinstance(error, BlockingIOError):
            raise _unusable(directory, error) from error
        raise StoreError(
            f"{named(directory)} is in use by another gateway; give each gateway a data directory of its own"
        ) from error
    return lock


def is_taken(directory: Path) -> bool:
    """Return True if a gateway has the directory now. Nothing is there afterwards that was not there before.

    Raises:
        StoreError: `take` would refuse it.
    """
    try:
        if not directory.exists():
            _refuse_unwritable(_nearest(directory))
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
        raise _unusable(directory, error) from error


def space_warnings(directory: Path) -> list[str]:
    """Return a warning if the disk of a data directory, made or not, has no or nearly no room."""
    try:
        disk = os.statvfs(_nearest(directory / LOCK_NAME))
    except OSError:
        # Whoever wants to use the directory is told why not.
        return []
    where, free = f"data_dir: the disk of {directory.resolve()}", disk.f_bavail * disk.f_frsize
    if free < KEPT_FREE:
        return [
            f"{where} has {free / 2**20:.1f} MiB free, less than the {KEPT_FREE // 2**20} MiB that the gateway leaves "
            "free; while it is full, new prompts and uploads are refused: free some space"
        ]
    if disk.f_files and not disk.f_favail:
        return [f"{where} takes no more files (it has no free inodes), so uploads are refused; delete some files there"]
    return []


def _nearest(directory: Path) -> Path:
    """Return the nearest folder or file above a path that is there."""
    return next(parent for parent in directory.absolute().parents if os.path.exists(parent))


def _unusable(directory: Path, error: OSError) -> StoreError:
    """Return the error for a data directory that can't be used, in a sentence that says what to do."""
    reason, place = str(error.strerror), directory.absolute()
    for path in (place, *place.parents):
        if os.path.exists(path):
            if not os.path.isdir(path):
                what = "it is a file" if path == place else f"{path} is a file"
                reason = f"{what}; give the path of a folder of the gateway's own"
            elif error.errno == errno.ENOENT:
                reason = f"no folder can be made in {path} ({reason}); give another path"
            break
    return StoreError(f"{named(directory)} can't be used as data directory: {reason}")


def _refuse_unwritable(directory: Path) -> None:
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    effective = os.access in os.supports_effective_ids
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    try:
        # A file without a name, which leaves no trace.
        os.close(os.open(directory, getattr(os, "O_TMPFILE", 0) | os.O_RDWR, 0o600))
    except OSError as error:
        if error.errno in _FULL:
            # A gateway may start there, and says so; `space_warnings` does, too.
            return
        if error.errno not in _WITHOUT_NAMELESS_FILES:
            raise
        # Where there are no files without a name, only a folder can tell: in /proc, nothing else says no.
        probe = directory / f".comfyui-gateway-check-{os.getpid()}"
        probe.mkdir(mode=0o700)
        probe.rmdir()


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
