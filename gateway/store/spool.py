"""Large parts of messages that wait for their readers: on disk, within a bound for each tenant and one for all.

A part is in memory when it comes. If it is still needed a moment later, a thread writes it to a file, once for all its
readers, and its memory is given back. Its file is deleted with its last holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gateway.store.directory import KEPT_FREE
from gateway.telemetry import logs

_log = logs.get("spool")

# Bytes that are read or handed on at a time.
PIECE = 256 * 1024
# Bytes in memory that are on their way to the disk. Past it backends are read no further until the disk has taken some.
MAX_IN_MEMORY = 128 * 2**20
# A reader that keeps up has taken a part by then, and nothing is written.
PAUSE_SECONDS = 0.05
THREADS = 2


class Lost(Exception):
    """A part is gone, because the disk did not take it or does not give it back."""


class Bulk:
    """One large part of a message.

    Attributes:
        size: its bytes.
        held: bytes that count as memory of its holder: none if it has a place on disk.
    """

    __slots__ = ("__weakref__", "_memory", "_path", "_spool", "held", "is_lost", "size")

    def __init__(self, spool: Spool, size: int, held: int, memory: memoryview | None, path: Path | None) -> None:
        self._spool = spool
        self.size = size
        self.held = held
        self.is_lost = False
        self._memory = memory
        self._path = path

    @property
    def memory(self) -> memoryview | None:
        """Return the part's bytes while they are in memory."""
        return self._memory

    def written(self, path: Path) -> None:
        """Give its memory back: it is in a file now."""
        self._path, self._memory = path, None

    def lose(self) -> None:
        """Give it up: the disk did not take it."""
        self.is_lost, self._memory = True, None

    async def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Yield the part's bytes, from the beginning, out of memory or the file.

        Raises:
            Lost: it is gone.
        """
        for start in range(0, self.size, PIECE):
            if self.is_lost:
                raise Lost
            end = min(start + PIECE, self.size)
            if self._memory is not None:
                yield self._memory[start:end]
            else:
                assert self._path is not None
                piece = await self._spool.read(self._path, start, end - start)
                if len(piece) != end - start:
                    raise Lost
                yield piece


class Spool:
    """All that waits on disk.

    Args:
        directory: made if it is not there, and emptied by `open`.
        per_tenant: bytes that may wait for one tenant's readers.
        in_all: bytes that may wait for all.
    """

    def __init__(self, directory: Path, per_tenant: int, in_all: int, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._directory = directory
        self._per_tenant = per_tenant
        self._in_all = in_all
        self._max_in_memory = max_in_memory
        self._threads = ThreadPoolExecutor(THREADS, "spool")
        self._tenants: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._waiting: dict[int, weakref.ref[Bulk]] = {}
        self._in_memory = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.bytes = 0

    def open(self) -> None:
        """Empty the directory, because files of an earlier run have no readers."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700, parents=True)

    def close(self) -> None:
        """Let go of all files."""
        self._threads.shutdown(cancel_futures=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def bytes_of(self, tenant: str) -> int:
        """Return the bytes that wait for a tenant's readers."""
        return self._tenants[tenant]

    def take(self, tenant: str, data: bytes | memoryview) -> Bulk:
        """Take a part that is in memory. Past a bound it stays there, and counts as memory of its holder."""
        view = memoryview(data)
        if not self._has_place(tenant, len(view)):
            return Bulk(self, len(view), len(view), view, None)
        bulk = Bulk(self, len(view), 0, view, None)
        number = self._reserve(bulk, tenant)
        self._in_memory += bulk.size
        self._waiting[number] = weakref.ref(bulk)
        weakref.finalize(bulk, self._forget_waiting, number, bulk.size).atexit = False
        asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._write, number)
        return bulk

    async def room(self) -> None:
        """Wait while more is in memory, on its way to the disk, than may be."""
        while self._in_memory > self._max_in_memory:
            for number in list(self._waiting):
                self._write(number)
            self._has_room.clear()
            await self._has_room.wait()

    def has_place(self, tenant: str, size: int) -> bool:
        """Return True if so many bytes more may wait for a tenant's readers."""
        return self._has_place(tenant, size)

    def _has_place(self, tenant: str, size: int) -> bool:
        if self._tenants[tenant] + size > self._per_tenant or self.bytes + size > self._in_all:
            return False
        try:
            disk = os.statvfs(self._directory)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= KEPT_FREE + size

    def new_path(self) -> Path:
        """Return a path for a file that the caller writes; then `adopt` it, or remove it."""
        return self._directory / str(next(self._numbers))

    def adopt(self, tenant: str, path: Path, size: int) -> Bulk:
        """Take a part that is in a file of `new_path`."""
        bulk = Bulk(self, size, 0, None, path)
        self._count(tenant, size)
        weakref.finalize(bulk, self._gone, tenant, size, path).atexit = False
        return bulk

    async def read(self, path: Path, start: int, size: int) -> bytes:
        """Read a piece of a file.

        Raises:
            Lost: it can't be read.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, _read, path, start, size)
        except OSError as error:
            _log.error("spool_read_failed", error=str(error))
            raise Lost from error

    async def store(self, pieces: Iterable[bytes | memoryview]) -> Path:
        """Put bytes into a file of `new_path`, and return that.

        Raises:
            Lost: the disk does not take them.
        """
        path = self.new_path()
        stored = asyncio.get_running_loop().run_in_executor(self._threads, _store_all, path, pieces)
        try:
            await asyncio.shield(stored)
        except asyncio.CancelledError:
            stored.add_done_callback(partial(self._forsaken, path))
            raise
        except OSError as error:
            self.discard(path)
            _log.error("spool_write_failed", error=str(error))
            raise Lost from error
        return path

    def discard(self, path: Path) -> None:
        """Remove a file that is nobody's."""
        with contextlib.suppress(RuntimeError):
            # Unless it is closed, and all files are gone with it. To remove a large file may take the disk long.
            self._threads.submit(_remove, path)

    def _forsaken(self, path: Path, stored: asyncio.Future[None]) -> None:
        if not stored.cancelled() and stored.exception() is None:
            self.discard(path)

    def _reserve(self, bulk: Bulk, tenant: str) -> int:
        number = next(self._numbers)
        self._count(tenant, bulk.size)
        weakref.finalize(bulk, self._gone, tenant, bulk.size, self._directory / str(number)).atexit = False
        return number

    def _count(self, tenant: str, size: int) -> None:
        self._tenants[tenant] += size
        self.bytes += size
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    def _gone(self, tenant: str, size: int, path: Path) -> None:
        self._count(tenant, -size)
        self.discard(path)

    def _forget_waiting(self, number: int, size: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._left_memory(size)

    def _left_memory(self, size: int) -> None:
        self._in_memory -= size
        self._has_room.set()

    def _write(self, number: int) -> None:
        """Have a part written that somebody still needs."""
        waiting = self._waiting.pop(number, None)
        bulk = waiting() if waiting is not None else None
        if bulk is None or bulk.memory is None:
            return
        path = self._directory / str(number)
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._threads, _store, path, bulk.memory)
        # The thread holds the bytes until it is done, so they count for so long.
        done.add_done_callback(partial(self._written, weakref.ref(bulk), bulk.size, path))

    def _written(self, waiting: weakref.ref[Bulk], size: int, path: Path, done: asyncio.Future[None]) -> None:
        self._left_memory(size)
        bulk = waiting()
        error = None if done.cancelled() else done.exception()
        if bulk is None:
            # Its last reader went while it was written; the file may have come after its removal.
            self.discard(path)
        elif done.cancelled() or error is not None:
            _log.error("spool_write_failed", error=str(error), bytes=size)
            bulk.lose()
        else:
            bulk.written(path)


def _store(path: Path, data: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        place = 0
        while place < len(data):
            # A piece at a time, because a thread can't be ended while it writes.
            place += file.write(data[place : place + 16 * PIECE])


def _store_all(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    with path.open("wb", buffering=16 * PIECE) as file:
        file.writelines(pieces)


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, start)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
