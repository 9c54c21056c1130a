"""Bytes that wait on the gateway's disk for a store that is away: one file for each object, within a bound."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import TypeVar

from gateway.store.directory import KEPT_FREE
from gateway.store.durable_rename import replace

_T = TypeVar("_T")

# Bytes gathered before the disk is asked, and bytes read at a time.
GATHER, PIECE = 2**20, 256 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFINISHED = ".unfinished"


class SpoolFull(Exception):
    """There is no room for a file: the bound is reached, or the disk is full or fails."""


class SpoolLost(Exception):
    """The disk does not give the bytes back."""


class ArtifactSpool:
    """A folder of files.

    Args:
        maximum: bytes of all files together.

    Attributes:
        bytes: bytes of the files, and of those that are being written.
    """

    def __init__(self, directory: Path, maximum: int) -> None:
        self._directory = directory
        self._maximum = maximum
        self._sizes: dict[str, int] = {}
        self.bytes = 0

    async def open(self, names: Collection[str]) -> None:
        """Make the folder, find the named files, and delete all others, because no row leads to them.

        Raises:
            OSError: the folder can't be used.
        """

        def look() -> dict[str, int]:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = {}
            for path in self._directory.iterdir():
                if path.name in names:
                    found[path.name] = path.stat().st_size
                else:
                    path.unlink(missing_ok=True)
            return found

        self._sizes = await asyncio.to_thread(look)
        self.bytes = sum(self._sizes.values())

    def has(self, name: str) -> bool:
        """Return True if a file is here."""
        return name in self._sizes

    def has_room(self, size: int = 1) -> bool:
        """Return True if the bound leaves room for so many bytes more."""
        return self.bytes + size <= self._maximum

    async def write(self, name: str, chunks: AsyncIterator[bytes], size: int | None) -> int:
        """Write a file, and return its size. Its bytes are on the disk then. Whatever `chunks` raises goes on.

        Args:
            size: its size if known, to be kept free from the beginning.

        Raises:
            SpoolFull: there is no room.
        """
        reserved = size or 0
        if not self.has_room(max(reserved, 1)):
            raise SpoolFull(f"storage.max_spool ({self._maximum} bytes) is reached")
        path = self._directory / f"{secrets.token_hex(16)}{_UNFINISHED}"
        self.bytes += reserved
        written = 0
        try:
            file = await self._disk(lambda: path.open("xb", buffering=0))
            try:
                gathered = bytearray()
                async for chunk in chunks:
                    gathered += chunk
                    more = written + len(gathered) - reserved
                    if more > 0:
                        if not self.has_room(more):
                            raise SpoolFull(f"storage.max_spool ({self._maximum} bytes) is reached")
                        self.bytes += more
                        reserved += more
                    if len(gathered) >= GATHER:
                        await self._disk(lambda data=gathered: _write(file.fileno(), data))  # type: ignore[misc]
                        written, gathered = written + len(gathered), bytearray()
                await self._disk(lambda: _finish(file.fileno(), gathered))
                written += len(gathered)
            finally:
                await self._disk(file.close)
            await self._disk(lambda: replace(path, self._directory / name))
        except BaseException:
            self.bytes -= reserved
            await asyncio.to_thread(_remove, path)
            raise
        # If the name was written before, its bytes are replaced.
        self.bytes += written - reserved - self._sizes.get(name, 0)
        self._sizes[name] = written
        return written

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield a file's bytes from `start` up to `end`, which is not included; None: up to the last.

        Raises:
            SpoolLost: the file can't be read, or is too short.
        """
        if name not in self._sizes:
            raise SpoolLost("the file is not there")
        end = self._sizes[name] if end is None else min(end, self._sizes[name])
        try:
            file = await asyncio.to_thread(open, self._directory / name, "rb", 0)
        except OSError as error:
            raise SpoolLost(str(error.strerror)) from error
        try:
            place = start
            while place < end:
                try:
                    piece = await asyncio.to_thread(os.pread, file.fileno(), min(PIECE, end - place), place)
                except OSError as error:
                    raise SpoolLost(str(error.strerror)) from error
                if not piece:
                    raise SpoolLost("the file is shorter than it was")
                place += len(piece)
                yield piece
        finally:
            file.close()

    async def remove(self, name: str) -> None:
        """Delete a file, if it is here. Whoever reads it reads on."""
        self.bytes -= self._sizes.pop(name, 0)
        await asyncio.to_thread(_remove, self._directory / name)

    async def _disk(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            reason = "the disk is full" if error.errno in _FULL else f"the disk fails: {error.strerror}"
            raise SpoolFull(f"data_dir/artifacts: {reason}") from error


def _write(descriptor: int, data: bytearray) -> None:
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < KEPT_FREE + len(data):
        # Leave room for the journal, which may be on the same disk.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _finish(descriptor: int, data: bytearray) -> None:
    _write(descriptor, data)
    os.fsync(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # If the disk fails, the next start deletes the file.
        pass
