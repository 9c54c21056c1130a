"""Files kept under the SHA-256 of their bytes: written as a stream, whole or not at all."""

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
    """Result of `BlobStore.reconcile`: the missing digests, and the numbers of blobs brought back and put aside."""

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
        """Return the number of bytes that lie aside."""
        return self._aside.bytes

    async def open(self) -> None:
        """Make the directory, and delete the half-written files of an earlier run.

        Raises:
            StoreError: it can't be used.
        """
        await _in_thread(self._open)

    def _open(self) -> None:
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(parents=True)
        self._aside.open()

    def path(self, digest: str) -> Path:
        """Return the path of a blob. The file need not exist."""
        return self._directory / digest[:2] / digest

    async def has(self, digest: str) -> bool:
        """Return True if the store has a blob. A blob that lies aside does not count."""
        return await _in_thread(self.path(digest).is_file)

    def writer(self) -> BlobWriter:
        """Return a writer for a new blob, to write bytes as they come: ``async with store.writer() as writer``."""
        return BlobWriter(self, self._unfinished / uuid.uuid4().hex)

    async def remove(self, digest: str) -> None:
        """Delete a blob."""
        await _in_thread(lambda: self.path(digest).unlink(missing_ok=True))

    async def reconcile(self, digests: Collection[str], is_deleted: Callable[[str], bool]) -> Reconciled:
        """Bring back the named blobs that lie aside, delete others that were deleted, and put all the rest aside.

        Other blobs are unknown because a crash left them, or because the journal that names them was moved away.
        `is_deleted` returns True for the digest of a blob whose owner deleted it.

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
            others = []
            for path in [path for path in self._directory.glob("??/*") if path.name not in digests]:
                if is_deleted(path.name):
                    path.unlink()
                else:
                    others.append(path)
                    self._aside.put(path)
            return Reconciled(missing, brought_back, len(others))

        return await _in_thread(reconcile)

    async def put_aside(self, digest: str) -> None:
        """Put a blob aside. It comes back if it is named again in time.

        Raises:
            StoreError: it can't be moved.
        """

        def put() -> None:
            if self.path(digest).is_file():
                self._aside.put(self.path(digest))

        await _in_thread(put)

    async def sweep_aside(self, served: float, keep: float) -> int:
        """Delete blobs that lay aside for `keep` seconds during which a gateway served. Return their number.

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
        """Delete the blobs that have lain aside longest, until `size` bytes are free. Return the bytes freed.

        Raises:
            StoreError: the disk fails.
        """
        return await _in_thread(lambda: self._aside.make_room(size))

    def _placed(self, digest: str) -> None:
        """Note that a blob came into the store: a copy of it that lies aside is worth nothing."""
        self._aside.drop(digest)


class BlobWriter:
    """Bytes on their way into the store. Without `keep` nothing of them stays."""

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
        """Finish, and return a file with the bytes. The file is deleted when the writer closes.

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
        """Return the SHA-256, in hexadecimal, of the bytes written before `spool`."""
        return self._hash.hexdigest()

    async def seal(self) -> Blob:
        """Finish: sync the bytes to the disk and return their blob. Only `keep` puts it into the store.

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
        """Move the blob into the store, under its digest.

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
                # If the disk did not take the bytes, go on: nobody wants them, or `seal` or `spool` has raised it.
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
