"""Objects in S3 and compatible stores, Google Cloud Storage, Azure, a folder, or memory: put, get, list, sign, delete.

Callers' keys are relative to the path of ``storage.url``.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.artifacts.storage_errors import StorageError, storage_error
from gateway.settings.storage import StorageSettings
from gateway.telemetry.tasks import together

if TYPE_CHECKING:
    from obstore import AsyncWritableFile

    from gateway.artifacts.store_clients import AnyStore, SigningStore

__all__ = ["CHUNK", "NO_EXTRA", "ObjectStore", "StorageError"]

# Bytes of a chunk of `get`, unless the network gives larger ones.
CHUNK = 256 * 1024
# A put holds at most three parts: two that are sent, and one that grows. S3 takes no smaller ones.
PART = 5 * 1024 * 1024
_PARTS_AT_ONCE = 2
_PAGE = 1000
_DELETES_AT_ONCE = 10
_SYNCS_AT_ONCE = 4
_ABORT_SECONDS = 5.0
_SETTLE_SECONDS = 0.1
NO_EXTRA = "storage.url is set, but the package for object storage is missing; pip install 'comfyui-gateway[storage]'"
_WRITING, _LISTING = "writing an object", "listing objects"
Entry = tuple[str, int, int]
_T = TypeVar("_T")


class ObjectStore:
    """A store of objects. Each call, and each chunk of a stream, has the time limit ``storage.timeout``.

    Every failure is a StorageError. The memory of a put is bounded.
    """

    def __init__(
        self, settings: StorageSettings, store: AnyStore, signing: SigningStore | None, folder: Path | None
    ) -> None:
        self._store = store
        self._signing = signing
        self._folder = folder
        # Not the event loop's threads, because others use those, and a folder may be a network disk that hangs.
        self._syncs = ThreadPoolExecutor(_SYNCS_AT_ONCE, "storage-sync") if folder is not None else None
        self._timeout = settings.timeout
        self._is_bulk = settings.scheme in ("s3", "memory")
        # For people: the bucket and the server, never credentials.
        self.place = f"{settings.url} ({settings.endpoint})" if settings.endpoint else settings.url

    @classmethod
    def of(cls, settings: StorageSettings) -> ObjectStore:
        """Return the store that the settings name. Nothing is sent to it yet.

        Raises:
            StorageError: the extra ``storage`` is not installed, or the settings make no store.
        """
        try:
            from gateway.artifacts import store_clients
        except ImportError as error:
            raise StorageError("other", NO_EXTRA) from error
        import obstore.exceptions

        _settle_at_exit()
        try:
            store = store_clients.make_store(settings)
            signing: SigningStore | None = None
            if settings.scheme in ("s3", "gs", "az"):
                signing = store_clients.make_remote_store(settings, settings.public_endpoint or settings.endpoint)
        except OSError as error:
            raise StorageError("other", f"storage: {error.filename}: {error.strerror}") from error
        except (ValueError, obstore.exceptions.BaseError) as error:
            # If the settings are malformed, don't repeat the library's text, because it may quote them.
            raise StorageError("other", f"storage: the settings for {settings.url} make no store") from error
        return cls(settings, store, signing, store_clients.folder_of(settings) if settings.scheme == "file" else None)

    @property
    def can_sign(self) -> bool:
        """Return True if the store's server takes signed URLs."""
        return self._signing is not None

    async def put(
        self, key: str, chunks: AsyncIterator[bytes], *, content_type: str = "", disposition: str = ""
    ) -> None:
        """Write an object from a stream: at once if it is small, else in parts. Nobody sees a part of an object.

        If the stream raises, the parts that were sent are deleted, and its exception goes on.

        Raises:
            StorageError: the object was not written.
        """
        import obstore

        given = {"Content-Type": content_type, "Content-Disposition": disposition}
        # A folder keeps no attributes, and the library refuses them there.
        attributes = {name: value for name, value in given.items() if value and self._folder is None}
        held: collections.deque[bytes] = collections.deque()
        size, chunks = 0, aiter(chunks)
        async for chunk in chunks:
            held.append(chunk)
            size += len(chunk)
            if size >= PART:
                await self._put_parts(key, held, chunks, attributes)
                break
        else:
            # Not through a writer, because its errors don't tell the cause of a connection's failure.
            put = obstore.put_async(self._store, key, b"".join(held), attributes=attributes, use_multipart=False)
            await self._call(_WRITING, put)
        if self._folder is not None:
            done = asyncio.get_running_loop().run_in_executor(self._syncs, _sync, self._folder / key)
            await self._call(_WRITING, done)

    async def _put_parts(
        self, key: str, held: collections.deque[bytes], chunks: AsyncIterator[bytes], attributes: dict[str, str]
    ) -> None:
        """Write an object in parts: the chunks that are held, and those to come."""
        import obstore

        writer = obstore.open_writer_async(
            self._store, key, attributes=attributes, buffer_size=PART, max_concurrency=_PARTS_AT_ONCE
        )
        # The call in flight. If this put is cancelled, it must end before the parts can be deleted.
        calls: list[asyncio.Future[object]] = []

        async def run(call: Awaitable[object]) -> None:
            calls[:] = [asyncio.ensure_future(call)]
            await self._call(_WRITING, asyncio.shield(calls[0]))

        try:
            while held:
                await run(writer.write(held.popleft()))
            async for chunk in chunks:
                if chunk:
                    await run(writer.write(chunk))
            # Wait for the parts first, because a failure of close() leaves nothing that could be aborted.
            await run(writer.flush())
            await run(writer.close())
        except BaseException:
            await _abort(writer, calls)
            raise

    async def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes of an object from `start` up to `end`, which is not included; None: up to the last.

        Raises:
            StorageError: the object is missing, which shows before the first chunk, or reading failed.
        """
        import obstore

        if end is not None and end <= start:
            return
        wanted: tuple[int, int] | obstore.OffsetRange | None = (start, end) if end is not None else None
        if end is None and start:
            wanted = {"offset": start}
        options: obstore.GetOptions = {"range": wanted} if wanted is not None else {}
        found = await self._call("reading an object", obstore.get_async(self._store, key, options=options))
        stream = aiter(found.stream(min_chunk_size=CHUNK))
        while (chunk := await self._call("reading an object", anext(stream, None))) is not None:
            yield bytes(chunk)

    async def head(self, key: str) -> int | None:
        """Return the size of an object, or None if there is no such object.

        Raises:
            StorageError: the store did not say.
        """
        import obstore

        try:
            return (await self._call("looking for an object", obstore.head_async(self._store, key)))["size"]
        except StorageError as error:
            if error.kind not in ("missing", "denied"):
                raise
        # An answer to HEAD has no body, so it does not tell a missing bucket from a missing object, nor a wrong clock
        # from a wrong key. The body of an answer to GET does.
        try:
            found = await self._call("looking for an object", obstore.get_async(self._store, key))
        except StorageError as error:
            if error.kind != "missing":
                raise
            return None
        return found.meta["size"]

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects. One that is missing counts as deleted.

        Raises:
            StorageError: not all were deleted.
        """
        import obstore

        if self._is_bulk:
            for first in range(0, len(keys), _PAGE):
                page = list(keys[first : first + _PAGE])
                await self._call("deleting objects", obstore.delete_async(self._store, page))
            return
        for first in range(0, len(keys), _DELETES_AT_ONCE):
            await together(self._delete_one(key) for key in keys[first : first + _DELETES_AT_ONCE])

    async def list(self, prefix: str = "") -> AsyncIterator[Sequence[Entry]]:
        """Yield pages of the objects below a prefix of whole path segments: key, size, and last change in seconds.

        Raises:
            StorageError: listing failed.
        """
        import obstore

        stream = aiter(obstore.list(self._store, prefix or None, chunk_size=_PAGE))
        while (page := await self._call(_LISTING, anext(stream, None))) is not None:
            yield [(each["path"], each["size"], int(each["last_modified"].timestamp())) for each in page]

    async def sign(self, keys: Sequence[str], seconds: float) -> Sequence[str]:
        """Return a URL for each key that anybody may GET for so many seconds, at the public endpoint if there is one.

        Raises:
            StorageError: the store can't sign.
        """
        import obstore

        if self._signing is None:
            raise StorageError("other", f"{self.place} takes no signed URLs")
        if not keys:
            return []
        lifetime = timedelta(seconds=seconds)
        return await self._call("signing URLs", obstore.sign_async(self._signing, "GET", list(keys), lifetime))

    async def _delete_one(self, key: str) -> None:
        import obstore

        try:
            await self._call("deleting an object", obstore.delete_async(self._store, key))
        except StorageError as error:
            if error.kind != "missing":
                raise

    async def _call(self, doing: str, call: Awaitable[_T]) -> _T:
        with self._errors(doing):
            async with asyncio.timeout(self._timeout):
                return await call

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        import obstore.exceptions

        try:
            yield
        except (OSError, ValueError, obstore.exceptions.BaseError) as error:
            # What is written or listed can't be missing, so it is the bucket, though not all servers say so.
            found = storage_error(doing, self.place, error, is_bucket=doing in (_WRITING, _LISTING))
            if found.kind == "missing" and self._folder is not None and not self._folder.is_dir():
                raise StorageError("bucket", f"{doing} at {self.place}: the folder does not exist; mount it") from error
            raise found from error


@functools.cache
def _settle_at_exit() -> None:
    """Let the library's threads come to rest before the interpreter ends.

    After its last call a thread drops references to Python's objects. If the interpreter is ending by then, the process
    aborts (seen in one of six ends with obstore 0.12.1).
    """
    atexit.register(time.sleep, _SETTLE_SECONDS)


async def _abort(writer: AsyncWritableFile, calls: Sequence[asyncio.Future[object]]) -> None:
    """Delete the parts of an object that is not complete. If that fails, a lifecycle rule of the bucket has to."""
    import obstore.exceptions

    with contextlib.suppress(OSError, obstore.exceptions.BaseError):
        async with asyncio.timeout(_ABORT_SECONDS):
            # A part that arrives after the abort would stay.
            await asyncio.gather(*calls, writer.flush(), return_exceptions=True)
            await writer.__aexit__(StorageError, None, None)


def _sync(path: Path) -> None:
    """Wait until a file and its name are on disk, because the journal will count on them."""
    for each, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY)):
        descriptor = os.open(each, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
