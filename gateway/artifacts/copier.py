"""One attempt to copy a file: from its backend, or from the gateway's disk, to the store or to the disk.

The bytes are those that GET /view shows to the file's owner. A file that another one has replaced is not copied: the
ETag is compared before the first byte and after the last one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.artifacts.keys import shared_key, spool_name
from gateway.artifacts.model import UPLOADS, State, content_type_of, disposition_of, expected_of, there_of
from gateway.artifacts.object_store import NO_EXTRA, ObjectStore, StorageError
from gateway.artifacts.spool import ArtifactSpool, SpoolLost
from gateway.comfy.client import BackendError
from gateway.comfy.file_refs import view_path
from gateway.files.hidden_texts import Rewrite, may_hold_texts, patched
from gateway.files.identity import Known, has, is_same, size_in
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.store.artifact_records import ArtifactRecord

CHUNK = 256 * 1024
# Maximum bytes of a file whose size neither its ETag nor its backend's answer tells.
MAX_UNTOLD = 2**36
_UNPACKED = {"Accept-Encoding": "identity"}


class SourceChanged(Exception):
    """Another file has the name of the file on its backend."""


class SourceMissing(Exception):
    """The backend does not have the file."""


class SourceAway(Exception):
    """The backend can't be reached now, or does not give the file."""


class Reading:
    """The bytes of a file, which are counted and hashed while they are read.

    Attributes:
        size: the size of the file if its source told it, else None.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size: int | None, hasher: Any) -> None:
        self._chunks = chunks
        self._hasher = hasher
        self.size = size
        self.read = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes. What the source raises goes on."""
        async for chunk in self._chunks:
            self.read += len(chunk)
            self._hasher.update(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        """Return the BLAKE3 of the bytes so far, in hex."""
        digest: str = self._hasher.hexdigest()
        return digest


class Copier:
    """Copies files. It has no state of its own.

    Args:
        rewriting: returns the function by which a tenant's texts in PNG files are rewritten; None to leave them.
        upload_path: returns the path of an upload's bytes by their SHA-256.
        timeout: seconds for which a source may be silent.

    Raises:
        StorageError: the package for hashes is missing.
    """

    def __init__(
        self,
        fleet: Fleet,
        store: ObjectStore,
        spool: ArtifactSpool,
        rewriting: Callable[[str], Rewrite | None],
        upload_path: Callable[[str], Path],
        timeout: float,
    ) -> None:
        # Import it here, because a gateway without storage does not need it.
        try:
            from blake3 import blake3
        except ImportError as error:
            raise StorageError("other", NO_EXTRA) from error

        self._fleet = fleet
        self._store = store
        self._spool = spool
        self._rewriting = rewriting
        self._upload_path = upload_path
        self._timeout = timeout
        self._new_hasher: Callable[[], Any] = blake3

    async def to_store(self, record: ArtifactRecord, began: Callable[[], None]) -> ArtifactRecord:
        """Copy a file into the store, and return its row then.

        Args:
            began: called before the store is asked, once the source has the file.

        Raises:
            SourceChanged, SourceMissing, SourceAway, SpoolLost: the source does not give the file.
            StorageError: the store does not take it.
        """
        type_, disposition = content_type_of(record.filename), disposition_of(record.filename)
        async with self._reading(record) as reading:
            began()
            await self._store.put(record.key, reading.chunks(), content_type=type_, disposition=disposition)
        return _with_bytes(record, State.STORED, reading)

    async def to_spool(self, record: ArtifactRecord) -> ArtifactRecord:
        """Copy a file to the gateway's disk, and return its row then.

        Raises:
            SourceChanged, SourceMissing, SourceAway: the source does not give the file.
            SpoolFull: there is no room.
        """
        async with self._reading(record) as reading:
            await self._spool.write(spool_name(record.key), reading.chunks(), reading.size)
        return _with_bytes(record, State.SPOOLED, reading)

    async def share(self, record: ArtifactRecord) -> ArtifactRecord:
        """Put a copy without metadata beside an object in the store, and return its row then.

        If its type has no such copy, or the file is malformed, return the row as it is.

        Raises:
            StorageError: the store fails.
        """
        from gateway.artifacts.strip import NotStrippable, stripper

        strip = stripper(record.filename)
        if strip is None or record.shared_key or record.backend == UPLOADS:
            return record
        key = shared_key(record.key)
        type_, disposition = content_type_of(record.filename), disposition_of(record.filename)
        try:
            chunks = strip(self._store.get(record.key))
            await self._store.put(key, chunks, content_type=type_, disposition=disposition)
        except NotStrippable:
            return record
        return replace(record, shared_key=key)

    @asynccontextmanager
    async def _reading(self, record: ArtifactRecord) -> AsyncIterator[Reading]:
        if record.state == State.SPOOLED:
            yield Reading(self._spooled(record), record.size, self._new_hasher())
            return
        if record.backend == UPLOADS:
            yield Reading(self._uploaded(record), None, self._new_hasher())
            return
        backend = self._fleet.backends.get(record.backend)
        if backend is None or not backend.pulse.alive:
            raise SourceAway(f"backend '{record.backend}' is away")
        path, there = view_path(there_of(record)), there_of(record)
        rewrite = self._rewriting(record.tenant) if may_hold_texts(there) else None
        try:
            async with backend.client.open("GET", path, headers=_UNPACKED, sock_read=self._timeout) as answer:
                if answer.status == 404:
                    raise SourceMissing(f"backend '{record.backend}' does not have it")
                if answer.status != 200 or "Content-Encoding" in answer.headers:
                    raise SourceAway(f"backend '{record.backend}' answered {answer.status}")
                known = expected_of(record, answer.headers)
                if not is_same(known, answer.headers):
                    raise SourceChanged(f"backend '{record.backend}' has another file of its name")
                length = answer.content_length
                source = self._checked(answer.content.iter_chunked(CHUNK), backend, record, known, length)
                chunks = patched(source, rewrite) if rewrite is not None else source
                yield Reading(chunks, length, self._new_hasher())
        except BackendError as error:
            raise SourceAway(str(error)) from error

    async def _checked(
        self,
        chunks: AsyncIterator[bytes],
        backend: Backend,
        record: ArtifactRecord,
        known: Known,
        length: int | None,
    ) -> AsyncIterator[bytes]:
        """Yield a file's bytes, then compare its length and its identity: it may have been written over meanwhile.

        Stop if there are more bytes than the file has, because a backend may send them for ever.
        """
        size, told = 0, size_in(record.etag)
        maximum = told if told is not None else MAX_UNTOLD if length is None else length
        async for chunk in chunks:
            size += len(chunk)
            if size > maximum:
                raise SourceChanged(f"backend '{record.backend}' sent more than the {maximum} bytes of the file")
            yield chunk
        if length is not None and size != length:
            raise SourceAway(f"backend '{record.backend}' sent {size} of {length} bytes")
        if not await has(backend, there_of(record), known):
            raise SourceChanged(f"backend '{record.backend}' has another file of its name since")

    async def _uploaded(self, record: ArtifactRecord) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(self._upload_path(record.etag).open, "rb", 0)
        except OSError as error:
            raise SourceMissing(f"the upload can't be read: {error.strerror}") from error
        with file:
            while piece := await asyncio.to_thread(file.read, CHUNK):
                yield piece

    async def _spooled(self, record: ArtifactRecord) -> AsyncIterator[bytes]:
        hasher = self._new_hasher()
        async for piece in self._spool.read(spool_name(record.key)):
            hasher.update(piece)
            yield piece
        if hasher.hexdigest() != record.digest:
            raise SpoolLost("its bytes on the disk have changed")


def _with_bytes(record: ArtifactRecord, state: State, reading: Reading) -> ArtifactRecord:
    stored_at = record.stored_at or int(time.time() * 1000)
    return replace(record, state=state, size=reading.read, digest=reading.digest, stored_at=stored_at)
