"""Transfer of files to backends: uploads from the gateway's store, and outputs of other backends.

A ComfyUI is asked to store a file as any client asks it, without ``overwrite``: it answers with the name that the
bytes have from now on, the old one if it had them already, another one if other bytes have the name.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path

from gateway.comfy.client import BackendError, BadAnswer, Unreachable, pieces
from gateway.comfy.file_refs import FileRef, folder_of, is_pattern, view_path, without_pattern
from gateway.comfy.json_stream import Unreadable
from gateway.comfy.responses import read_stored
from gateway.files.copy_names import copy_of, stored_copy_of
from gateway.files.free_names import marked
from gateway.files.identity import UNTOLD, Known, is_same
from gateway.files.index import Stored, Upload
from gateway.files.media_references import References, sentence
from gateway.files.placements import TRUST_SECONDS, Placement, Placements
from gateway.files.posting import FileMissing as FileMissing
from gateway.files.posting import post_file
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.store.blobs import BlobStore, BlobWriter
from gateway.store.protocol import PlacementRecord, Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks

_log = logs.get("files")

MAX_SPREADING = 1_000
# Many clients upload a file anew before each prompt: a look for each would slow the jobs that run.
SPREAD_TRUST_SECONDS = 2.0
MAX_COPIES = 10_000
# Returns the bytes of a stored file.
ReadStored = Callable[[Stored], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class _Copy:
    """A backend's file on another: its name and ETag there, and the ETag of its original."""

    ref: FileRef
    etag: str
    source_etag: str
    # What it is, in words, if it names other files.
    names: str | None


class SourceDown(Exception):
    """The backend that has a file can't be reached."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self.backend = backend


class StoreDown(Unreachable):
    """Object storage can't be reached, or can't give a file now."""


class FileTransfer:
    """Puts files on backends, each once, however many ask for it at a time.

    Args:
        maximum: bytes of a file that is brought from one backend to another.

    Attributes:
        references: which files name other files.
    """

    def __init__(
        self, fleet: Fleet, blobs: BlobStore, placements: Placements, store: Store, metrics: Metrics, maximum: int
    ) -> None:
        self._fleet = fleet
        self._blobs = blobs
        self._placements = placements
        self._store = store
        self._metrics = metrics
        self._maximum = maximum
        self.references = References(blobs)
        self._tasks = Tasks("transfer")
        self._under_way: dict[Hashable, asyncio.Task[FileRef | Exception]] = {}
        self._spreading: dict[str, deque[tuple[FileRef, Upload]]] = {}
        self._copies: OrderedDict[tuple[str, str, FileRef], _Copy] = OrderedDict()

    async def close(self) -> None:
        """Stop. A file that is not on a backend is put there when a prompt needs it."""
        await self._tasks.close()

    def reconnected(self, backend: Backend) -> None:
        """Trust nothing on a reconnected backend, because it may have come back empty, or as another one."""
        self._placements.doubt(backend.name)
        for key in [key for key in self._copies if backend.name in key[:2]]:
            del self._copies[key]

    async def ensure(
        self,
        backend: Backend,
        wanted: FileRef,
        upload: Upload,
        *,
        shown: str = "",
        judged: bool = False,
        seconds: float = TRUST_SECONDS,
    ) -> FileRef:
        """Make sure that an upload is on a backend, and return its name there.

        Args:
            shown: its name in errors, if not the wanted one.
            judged: True to refuse a file that names other files, and to put none where its name is a pattern.
            seconds: if it was seen there in the last `seconds`, don't look.

        Raises:
            BackendError: the backend can't be reached, or does not take it.
            FileMissing, StoreError: the gateway's own copy can't be read, or names other files.
        """
        if judged and (found := await self.references.of_upload(wanted.filename, upload.digest)) is not None:
            raise FileMissing(sentence(shown or wanted.filename, found))
        wanted = without_pattern(wanted) if judged and is_pattern(wanted) else wanted
        known = self._placements.find(backend.name, wanted, upload.digest)
        if known is not None and self._placements.is_trusted(backend.name, known, time.monotonic(), seconds):
            return known.ref
        key = (backend.name, wanted, upload.digest)
        return await self._once(key, lambda: self._ensure(backend, wanted, upload, known, shown or wanted.filename))

    async def copy(
        self, source: Backend, ref: FileRef, target: Backend, known: Known = UNTOLD, *, judged: bool = False
    ) -> FileRef:
        """Bring a file of one backend to another, and return its name there.

        Args:
            known: its identity, because another file of the same name must not be brought.
            judged: True to refuse a file that names other files.

        Raises:
            BackendError: the target can't be reached, or does not take it.
            FileMissing: the source does not have it, or it names other files.
            SourceDown: the source can't be reached.
            StoreError: there is no room to hold it meanwhile.
        """
        key = (target.name, source.name, ref, known, judged)
        return await self._once(key, lambda: self._current_copy(source, ref, target, known, judged))

    async def copy_stored(
        self,
        stored: Stored,
        wanted: FileRef,
        target: Backend,
        read: ReadStored,
        *,
        shown: str = "",
        judged: bool = False,
    ) -> FileRef:
        """Bring a file from object storage to a backend, and return its name there.

        Args:
            wanted: the name that it is to have there, without a mark.
            shown: its name in errors.
            read: returns the bytes of a stored file. It raises FileMissing, or StoreDown.
            judged: as for `copy`.

        Raises:
            BackendError: the target can't be reached, or does not take it.
            StoreDown: object storage can't give it now.
            FileMissing: object storage has it no more, or it names other files, or is too large.
            StoreError: there is no room to hold it meanwhile.
        """
        key = (target.name, stored.key, judged)
        return await self._once(key, lambda: self._current_stored(stored, wanted, target, read, shown, judged))

    async def is_lost(
        self, backend: Backend, wanted: FileRef, upload: Upload, since: float, *, judged: bool = False
    ) -> bool:
        """Return True if a backend lost an upload that was put there, even if it got the upload again meanwhile.

        If one file was deleted, more may be, so no placement of that backend is trusted any more.
        If the backend does not say, `ensure` asks it again.

        Args:
            since: the time when the upload was last needed there. Another job may have had it put there again.
            judged: as for `ensure`.
        """
        wanted = without_pattern(wanted) if judged and is_pattern(wanted) else wanted
        known = self._placements.find(backend.name, wanted, upload.digest)
        if known is None:
            return False
        if self._placements.was_put_again(backend.name, since):
            return True
        if not await self._is_gone(backend, known.ref, known.etag):
            return False
        self._placements.doubt(backend.name)
        return True

    async def is_lost_copy(self, source: str, ref: FileRef, backend: Backend, since: float) -> bool:
        """Return the same of the copy that a backend got of another's file."""
        known = self._copies.get((backend.name, source, ref))
        if known is None:
            return False
        again = self._placements.was_put_again(backend.name, since)
        return again or await self._is_gone(backend, known.ref, known.etag)

    async def is_lost_stored(self, stored: Stored, backend: Backend, since: float) -> bool:
        """Return the same of the copy that a backend got of a stored file."""
        return await self.is_lost_copy("", _key_of(stored), backend, since)

    async def _is_gone(self, backend: Backend, ref: FileRef, etag: str) -> bool:
        try:
            return await self._look(backend, ref) != etag
        except BackendError:
            return True

    def spread(self, place: Callable[[str], FileRef], upload: Upload, allowed: Collection[str] | None = None) -> None:
        """Put an upload on every backend that is `allowed` (None: all), in the background, one file each at a time.

        `place` returns the name that it is to have on a backend. If the upload was there already, it is looked at
        again soon: a client may bring a file again because a prompt found it missing.
        """
        for backend in self._fleet.alive(allowed):
            waiting = self._spreading.get(backend.name)
            if waiting is None:
                waiting = self._spreading[backend.name] = deque(maxlen=MAX_SPREADING)
                self._tasks.start(self._spread(backend, waiting), f"spread:{backend.name}")
            waiting.append((place(backend.name), upload))

    async def somewhere(
        self,
        place: Callable[[str], FileRef],
        upload: Upload,
        allowed: Collection[str] | None = None,
        *,
        anew: bool = False,
    ) -> tuple[Backend, FileRef]:
        """Return an `allowed` backend (None: all) that has an upload, or just got it, and the upload's name there.

        `place` returns the upload's wanted name on a backend. With `anew`, look again if the upload is there.

        Raises:
            BackendError: none can be reached.
            FileMissing, StoreError: the gateway's own copy can't be read.
        """
        alive = self._fleet.alive(allowed)
        places = {backend.name: place(backend.name) for backend in alive}
        alive.sort(key=lambda backend: self._placements.find(backend.name, places[backend.name], upload.digest) is None)
        failure: BackendError = Unreachable("no backend can be reached")
        for backend in alive:
            try:
                seconds = 0.0 if anew else TRUST_SECONDS
                return backend, await self.ensure(backend, places[backend.name], upload, seconds=seconds)
            except BackendError as error:
                failure = error
        raise failure

    async def holder_of(
        self, ref: FileRef, *besides: Backend, allowed: Collection[str] | None = None
    ) -> Backend | None:
        """Return an `allowed` backend (None: all), not of `besides`, that has a file which the ledger never saw."""
        for backend in self._fleet.alive(allowed):
            if backend in besides:
                continue
            try:
                if await self.has(backend, ref):
                    return backend
            except BackendError as error:
                _log.info("file_lookup_failed", backend=backend.name, error=str(error))
        return None

    async def has(self, backend: Backend, ref: FileRef) -> bool:
        """Return True if a backend has a file of this name, of any tenant.

        Raises:
            BackendError: the backend does not say.
        """
        return await self._look(backend, ref) is not None

    async def _spread(self, backend: Backend, waiting: deque[tuple[FileRef, Upload]]) -> None:
        try:
            while waiting:
                wanted, upload = waiting.popleft()
                try:
                    await self.ensure(backend, wanted, upload, seconds=SPREAD_TRUST_SECONDS)
                except (BackendError, FileMissing, StoreError) as error:
                    _log.info("upload_not_spread", backend=backend.name, error=str(error))
        finally:
            del self._spreading[backend.name]

    async def _once(self, key: Hashable, work: Callable[[], Awaitable[FileRef]]) -> FileRef:
        """Do a piece of work, or wait for the task that does it already. The task goes on if its callers give up."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = self._tasks.start(_caught(work), "file")
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _ensure(
        self, backend: Backend, wanted: FileRef, upload: Upload, known: Placement | None, shown: str
    ) -> FileRef:
        if known is not None:
            is_leaving = self._placements.is_leaving(backend.name, known.ref, time.monotonic())
            if await self._look(backend, known.ref) == known.etag and not is_leaving:
                self._placements.trust(backend.name, known, time.monotonic())
                return known.ref
            # If one file was deleted, doubt all, because more may have been deleted.
            self._placements.doubt(backend.name)
        path = self._blobs.path(upload.digest)
        if not await self._blobs.has(upload.digest):
            raise FileMissing(f"the gateway's copy of '{shown}' is gone")
        asked = wanted
        if wanted.kind != "input" or self._placements.digest_at(backend.name, wanted) not in (None, upload.digest):
            # A node that is saving at this moment may be about to take the very name: an output must not replace it.
            # Nor must an input take a name that others' bytes had there: prompts that are pending may read it.
            asked = FileRef(wanted.kind, wanted.subfolder, marked(wanted.filename, upload.digest[:8]))
        asked = self._placements.staying(backend.name, asked, time.monotonic())
        # Its name must be known for somebody's before a prompt of anybody's can read it.
        with self._placements.arriving(asked):
            placement = await self._put(backend, asked, wanted, path, upload.size, upload.digest, shown)
        self._placements.trust(backend.name, placement, time.monotonic())
        return placement.ref

    async def _put(
        self, backend: Backend, asked: FileRef, wanted: FileRef, path: Path, size: int, digest: str, shown: str
    ) -> Placement:
        """Send a file with the wanted name `wanted`, and remember its placement for ever."""
        ref = await self._send(backend, asked, path, size, shown)
        placement = Placement(ref, await self._look(backend, ref) or "")
        self._placements.put(backend.name, wanted, digest, placement, now=time.monotonic())
        record = PlacementRecord(
            backend.name, ref.kind, ref.subfolder, ref.filename, wanted.filename, digest, placement.etag
        )
        try:
            await self._store.try_write([record])
        except StoreError as error:
            # The file is there, and a prompt waits for it; a crash before this is written has it put there again.
            self._store.write([record])
            _log.warning("file_place_not_kept", backend=backend.name, error=str(error))
        return placement

    async def _current_copy(
        self, source: Backend, ref: FileRef, target: Backend, wanted: Known, judged: bool
    ) -> FileRef:
        """Return the known copy if neither file has changed; else make a new one.

        If a folder of outputs is cleaned, its names come again, for files of any tenant's prompts.
        """
        key = (target.name, source.name, ref)
        known = self._copies.pop(key, None)
        if known is not None and known.source_etag:
            try:
                now = await self._look(source, ref)
            except BackendError as error:
                raise SourceDown(source.name) from error
            is_current = now == known.source_etag and is_same(wanted, {"ETag": known.source_etag})
            if is_current and await self._has_still(target, known):
                self._copies[key] = known
                if judged and known.names is not None:
                    raise FileMissing(sentence(ref.filename, known.names))
                return known.ref
        copy = await self._copy(source, ref, target, wanted, judged)
        self._keep(key, copy)
        return copy.ref

    async def _current_stored(
        self, stored: Stored, wanted: FileRef, target: Backend, read: ReadStored, shown: str, judged: bool
    ) -> FileRef:
        key = (target.name, "", _key_of(stored))
        known = self._copies.pop(key, None)
        if known is not None and not await self._has_still(target, known):
            known = None
        if known is None:
            if stored.size > self._maximum:
                raise FileMissing(f"'{shown}' has {stored.size} bytes, of at most {self._maximum}")
            async with self._blobs.writer() as writer:
                async for chunk in read(stored):
                    await writer.write(chunk)
                known = await self._place(writer, shown, stored_copy_of(wanted, stored), target, "", judged)
        elif judged and known.names is not None:
            self._copies[key] = known
            raise FileMissing(sentence(shown, known.names))
        self._keep(key, known)
        return known.ref

    async def _has_still(self, backend: Backend, copy: _Copy) -> bool:
        """Return True if a backend has a copy still, and no sweep may delete it. Then note its use."""
        if self._placements.is_leaving(backend.name, copy.ref, time.monotonic()):
            return False
        if await self._look(backend, copy.ref) != copy.etag:
            return False
        self._placements.trust(backend.name, Placement(copy.ref, copy.etag), time.monotonic())
        return True

    def _keep(self, key: tuple[str, str, FileRef], copy: _Copy) -> None:
        self._copies[key] = copy
        while len(self._copies) > MAX_COPIES:
            self._copies.popitem(last=False)

    async def _copy(self, source: Backend, ref: FileRef, target: Backend, wanted: Known, judged: bool) -> _Copy:
        async with self._blobs.writer() as writer:
            try:
                async with source.client.open("GET", view_path(ref)) as answer:
                    if answer.status != 200 or not is_same(wanted, answer.headers):
                        raise FileMissing(f"'{ref.filename}' of backend '{source.name}' is not there any more")
                    source_etag = answer.headers.get("ETag", "")
                    async for chunk in pieces(answer, self._maximum):
                        await writer.write(chunk)
            except BadAnswer as error:
                raise FileMissing(f"'{ref.filename}' of backend '{source.name}' is {error}") from error
            except BackendError as error:
                raise SourceDown(source.name) from error
            return await self._place(writer, ref.filename, copy_of(ref, source.name), target, source_etag, judged)

    async def _place(
        self, writer: BlobWriter, shown: str, asked: FileRef, target: Backend, source_etag: str, judged: bool
    ) -> _Copy:
        """Put a file that was read whole on a backend."""
        path, digest = await writer.spool(), writer.digest
        names = await self.references.of_file(asked.filename, path)
        if judged and names is not None:
            raise FileMissing(sentence(shown, names))
        # Hide the copy from other tenants, as its original is hidden.
        asked = self._placements.staying(target.name, asked, time.monotonic())
        with self._placements.arriving(asked):
            placement = await self._put(target, asked, asked, path, writer.size, digest, shown)
        return _Copy(placement.ref, placement.etag, source_etag, names)

    async def _send(self, backend: Backend, asked: FileRef, path: Path, size: int, shown: str) -> FileRef:
        form = {"type": asked.kind, "subfolder": asked.subfolder}
        status, answer = await post_file(backend, "/upload/image", path, size, asked.filename, form)
        self._metrics.files_placed.labels(backend.name, "ok" if status == 200 else "refused").inc()
        if status != 200:
            raise BadAnswer(f"backend '{backend.name}' answered {status} to the file '{shown}'", status)
        try:
            folder, name = read_stored(answer)
            return FileRef(asked.kind, folder_of(folder), name)
        except Unreadable as error:
            raise BadAnswer("POST /upload/image did not answer as ComfyUI does", status) from error

    async def _look(self, backend: Backend, ref: FileRef) -> str | None:
        """Return the ETag of a file on a backend; None if there is no file of that name."""
        answer = await backend.client.call("HEAD", view_path(ref))
        return answer.headers.get("ETag", "") if answer.status == 200 else None


def _key_of(stored: Stored) -> FileRef:
    """Return a reference that stands for a stored file among files on backends."""
    return FileRef("", "", stored.key)


async def _caught(work: Callable[[], Awaitable[FileRef]]) -> FileRef | Exception:
    try:
        return await work()
    except (BackendError, FileMissing, SourceDown, StoreError) as error:
        return error
