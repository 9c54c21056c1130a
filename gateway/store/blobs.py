"""Files kept by what is in them: each under the SHA-256 of its bytes, written as a stream, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gateway.store.aside import Aside
from gateway.store.durable_rename import replace
from gateway.store.protocol import StoreError

_T = TypeVar("_T")

# Bytes gathered before the disk is asked: a call to a thread for each small chunk would cost more than the write.
GATHER = 2**20


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in the store: their SHA-256 in hexadecimal, and how many."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a look through the store found: digests that are missing, and how many blobs came back or went aside."""

    missing: list[str]
    brought_back: int
    put_aside: int


class BlobStore:
    """A directory of blobs.

    Args:
        directory: made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unfinished = directory / "unfinished"
        self._aside = Aside(directory / "aside")

    @property
    def aside_bytes(self) -> int:
        """How many bytes lie aside."""
        return self._aside.bytes

    async def open(self) -> None:
        """Make the directory; what an earlier run left half-written goes.

        Raises:
            StoreError: it can't be used.
        """
        await _in_thread(self._open)

    def _open(self) -> None:
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(parents=True)
        self._aside.open()

    def path(self, digest: str) -> Path:
        """Where a blob's bytes are, if it is there."""
        return self._directory / digest[:2] / digest

    async def has(self, digest: str) -> bool:
        """Whether it is there."""
        return await _in_thread(self.path(digest).is_file)

    def writer(self) -> BlobWriter:
        """A new blob, to be written as its bytes come: ``async with store.writer() as writer``."""
        return BlobWriter(self, self._unfinished / uuid.uuid4().hex)

    async def remove(self, digest: str) -> None:
        """Let go of one."""
        await _in_thread(lambda: self.path(digest).unlink(missing_ok=True))

    async def reconcile(self, digests: Collection[str]) -> Reconciled:
        """Bring back those of these blobs that lie aside, and put all others aside.

        Others are unknown because a crash left them, or because the journal that names them was moved away.

        Raises:
            StoreError: the disk fails.
        """

        def reconcile() -> Reconciled:
            missing, brought_back = [], 0
            for digest in digests:
                if not self.path(digest).is_file():
                    if self._aside.take(digest, self.path(digest)):
                        brought_back += 1
                    else:
                        missing.append(digest)
            others = [path for path in self._directory.glob("??/*") if path.name not in digests]
            for path in others:
                self._aside.put(path)
            return Reconciled(missing, brought_back, len(others))

        return await _in_thread(reconcile)

    async def put_aside(self, digest: str) -> None:
        """Let go of one for now: it comes back if it is named again in time.

        Raises:
            StoreError: it can't be moved.
        """

        def put() -> None:
            if self.path(digest).is_file():
                self._aside.put(self.path(digest))

        await _in_thread(put)

    async def sweep_aside(self, served: float, keep: float) -> int:
        """Delete what has lain aside for `keep` seconds during which a gateway served. Return how many.

        Args:
            served: the seconds since the last sweep, by a clock that can't be set.
            keep: how long a blob lies aside.

        Raises:
            StoreError: the disk fails.
        """

        def sweep() -> int:
            self._aside.go_on(served)
            return self._aside.delete_older(keep)

        return await _in_thread(sweep)

    async def free_aside(self, size: int) -> int:
        """Delete what has lain aside longest, until so many bytes are free. Return how many are.

        Raises:
            StoreError: the disk fails.
        """
        return await _in_thread(lambda: self._aside.make_room(size))

    def _placed(self, digest: str) -> None:
        """Note that a blob came into the store: a copy of it that lies aside is worth nothing."""
        self._aside.drop(digest)


class BlobWriter:
    """Bytes on their way into the store. What is left without `keep` leaves nothing behind."""

    def __init__(self, store: BlobStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._hash = hashlib.sha256()
        self._gathered = bytearray()
        self.size = 0

    async def __aenter__(self) -> BlobWriter:
        self._file = await _in_thread(lambda: self._path.open("xb"))
        return self

    async def write(self, chunk: bytes) -> None:
        """Take more bytes.

        Raises:
            StoreError: the disk does not.
        """
        self.size += len(chunk)
        self._gathered += chunk
        if len(self._gathered) >= GATHER:
            await _in_thread(self._flush)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._hash.update(gathered)
        self._file.write(gathered)

    async def spool(self) -> Path:
        """That was all, and the bytes are wanted for now alone: a file that goes with the writer.

        Raises:
            StoreError: they could not be written.
        """

        def flush() -> Path:
            self._flush()
            self._file.flush()
            return self._path

        return await _in_thread(flush)

    @property
    def digest(self) -> str:
        """The SHA-256, in hexadecimal, of what was written before `spool`."""
        return self._hash.hexdigest()

    async def seal(self) -> Blob:
        """That was all: the bytes are on the disk, and known by their digest; not in the store before `keep`.

        Raises:
            StoreError: they could not be written.
        """

        def seal() -> Blob:
            self._flush()
            self._file.flush()
            os.fsync(self._file.fileno())
            return Blob(self._hash.hexdigest(), self.size)

        return await _in_thread(seal)

    async def keep(self, blob: Blob) -> None:
        """Into the store, under its digest.

        Raises:
            StoreError: it could not be moved.
        """

        def keep() -> None:
            replace(self._path, self._store.path(blob.digest))
            self._store._placed(blob.digest)

        await _in_thread(keep)

    async def __aexit__(self, *_: object) -> None:
        def close() -> None:
            try:
                self._file.close()
            except OSError:
                # What the disk did not take is not wanted: had it been, `seal` or `spool` had said so.
                pass
            finally:
                self._path.unlink(missing_ok=True)

        await _in_thread(close)


async def _in_thread(work: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if error.errno in full else str(error.strerror)
        raise StoreError(f"uploads can't be kept: {reason}") from error
