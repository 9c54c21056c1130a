"""The upload store: files that clients brought, kept once by their bytes, within a quota and for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.comfy.file_refs import FileRef
from gateway.files.expiry import Expiry
from gateway.files.index import FileIndex, Stored, Upload
from gateway.files.values import Place
from gateway.settings import UploadSettings
from gateway.store.blobs import Blob, BlobStore, BlobWriter
from gateway.store.protocol import Store, StoreError, UploadRecord, UploadRemoval
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks
from gateway.tenants.limits import Limits, no_room

_log = logs.get("uploads")

SWEEP_SECONDS = 300.0
_ASIDE_HINT = (
    "the journal does not name these uploads; if it was moved away, stop the gateway and put it back before that many"
    " seconds of service are over"
)
_MISSING_HINT = "the journal names these uploads, and their bytes are not in data_dir/uploads; upload them again"
# A use is journalled if the one journalled last is so much older.
USE_RESOLUTION_MS = 600_000


class UploadInUse(Exception):
    """An upload can't be deleted, because an open job names it."""


class QuotaExceeded(Exception):
    """There is no room for an upload, even without all that is not in use."""


@dataclass(slots=True)
class _Kept:
    """Bytes in the store, whatever they are called."""

    size: int
    used_at: int
    journalled_at: int
    names: set[tuple[str, FileRef]] = field(default_factory=set)


class Uploads:
    """Uploads and their names.

    Args:
        is_named: returns True if an open job of a tenant's names a file. Such an upload is never deleted.
    """

    def __init__(
        self,
        settings: UploadSettings,
        files: FileIndex,
        blobs: BlobStore,
        store: Store,
        limits: Limits,
        is_named: Callable[[str, FileRef], bool],
    ) -> None:
        self._settings = settings
        self._files = files
        self._store = store
        self._limits = limits
        self._is_named = is_named
        self._kept: dict[str, _Kept] = {}
        # Uploads that a job named which ended right before the end of the earlier run.
        self._ended: list[tuple[str, FileRef]] = []
        # Held while bytes come into the store or leave it: the same bytes may do both at a time.
        self._moving = asyncio.Lock()
        self._expiry = Expiry(settings.keep)
        self._swept_at = time.monotonic()
        self._tasks = Tasks("uploads")
        self.blobs = blobs
        self.bytes = 0

    async def restore(self) -> None:
        """Read the uploads of earlier runs.

        Raises:
            StoreError: the directory can't be used.
        """
        await self.blobs.open()
        for record in await self._store.uploads():
            ref = FileRef(record.kind, record.subfolder, record.filename)
            upload = Upload(record.digest, record.size, record.brought_at)
            self._name(record.tenant, ref, upload, record.used_at)
            if record.ended:
                self._ended.append((record.tenant, ref))
        found = await self.blobs.reconcile(self._kept, self._files.deleted.has_upload)
        if found.brought_back:
            _log.info("uploads_brought_back", uploads=found.brought_back)
        if found.put_aside:
            _log.warning("uploads_put_aside", uploads=found.put_aside, seconds=self._settings.aside, hint=_ASIDE_HINT)
        if found.missing:
            _log.warning("uploads_missing", uploads=len(found.missing), digests=found.missing[:10], hint=_MISSING_HINT)

    def start(self) -> None:
        """Begin to sweep uploads that nobody has used for long."""
        rest = min(SWEEP_SECONDS, self._settings.keep, self._settings.aside / 4)
        self._tasks.repeat(self._sweep_again, "sweep", rest, at_once=False)

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    async def add(
        self, tenant: str, wanted: FileRef, writer: BlobWriter, *, overwrite: bool, compare: str = ""
    ) -> FileRef:
        """Keep an upload whose bytes have all been written; returns its name.

        `compare` is the digest that tells the same file from another, if it is not the bytes' own: ComfyUI compares a
        mask before it is put into its picture (server.py, upload_mask).

        Raises:
            QuotaExceeded: there is no room for it.
            LimitReached: the tenant's own uploads, as far as its open jobs need them, leave none.
            StoreError: it could not be written.
        """
        blob = await writer.seal()
        async with self._moving:
            ref = self._files.allot(tenant, wanted, compare or blob.digest, overwrite)
            known = self._files.find(tenant, ref)
            if isinstance(known, Upload) and known.digest == (compare or blob.digest):
                is_there = await self.blobs.has(known.digest)
                if not is_there and known.digest == blob.digest:
                    await writer.keep(blob)
                    is_there = True
                if is_there:
                    self.use(known.digest)
                    if self._settings.after_job == "forget":
                        # A prompt that names the upload is to come, so the end of an earlier job must not delete it.
                        self._bring_again(tenant, ref, known)
                    return ref
            await self._make_room_of(tenant, blob)
            await self._make_room(blob)
            await writer.keep(blob)
            # Asked again: while there was an await, another upload may have taken the name.
            ref = self._files.allot(tenant, wanted, compare or blob.digest, overwrite)
            before, now = self._files.find(tenant, ref), _now()
            self._name(tenant, ref, Upload(blob.digest, blob.size, now), now)
        record = UploadRecord(tenant, ref.kind, ref.subfolder, ref.filename, blob.digest, blob.size, now, now)
        try:
            await self._store.try_write([record])
        except StoreError:
            await self._take_back(tenant, ref, blob.digest, before)
            raise
        if dropped := self._files.take_dropped():
            self._store.write(dropped)
        if isinstance(before, Upload) and before.digest != blob.digest:
            async with self._moving:
                await self._unname(tenant, ref, before.digest)
        return ref

    async def name_again(self, tenant: str, known: FileRef, wanted: FileRef) -> FileRef | None:
        """Give an upload of a tenant one more name. Return that name; None if there is no such upload any more.

        Raises:
            StoreError: it could not be written.
        """
        async with self._moving:
            upload = self._files.find(tenant, known)
            if not isinstance(upload, Upload) or not await self.blobs.has(upload.digest):
                return None
            ref = self._files.allot(tenant, wanted, upload.digest, overwrite=False)
            before, now = self._files.find(tenant, ref), _now()
            if isinstance(before, Upload):
                self.use(upload.digest)
                if self._settings.after_job == "forget":
                    self._bring_again(tenant, ref, before)
                return ref
            self._name(tenant, ref, Upload(upload.digest, upload.size, now), now)
        record = UploadRecord(tenant, ref.kind, ref.subfolder, ref.filename, upload.digest, upload.size, now, now)
        try:
            await self._store.try_write([record])
        except StoreError:
            await self._take_back(tenant, ref, upload.digest, before)
            raise
        if dropped := self._files.take_dropped():
            self._store.write(dropped)
        return ref

    def _bring_again(self, tenant: str, ref: FileRef, known: Upload) -> None:
        """Note that an upload came again. An order to delete it, from the end of an earlier job, is over."""
        now = _now()
        self._files.put_upload(tenant, ref, Upload(known.digest, known.size, now))
        named = (tenant, ref.kind, ref.subfolder, ref.filename)
        self._store.write([UploadRecord(*named, known.digest, known.size, now, now)])

    async def _take_back(self, tenant: str, ref: FileRef, digest: str, before: Place | None) -> None:
        """Give a name its former file back, because the journal refused the new one."""
        async with self._moving:
            found = self._files.find(tenant, ref)
            if not isinstance(found, Upload) or found.digest != digest or before == found:
                return
            self._files.drop_upload(tenant, ref)
            if before is not None:
                self._files.take_back(tenant, ref, before)
            await self._unname(tenant, ref, digest)

    def use(self, digest: str) -> None:
        """Note that an upload is used now."""
        kept, now = self._kept.get(digest), _now()
        if kept is None:
            return
        kept.used_at = now
        if now - kept.journalled_at > USE_RESOLUTION_MS:
            kept.journalled_at = now
            self._store.write(
                [
                    UploadRecord(
                        *(tenant, ref.kind, ref.subfolder, ref.filename),
                        digest,
                        kept.size,
                        now,
                        self._brought_at(tenant, ref),
                    )
                    for tenant, ref in kept.names
                ]
            )

    def _brought_at(self, tenant: str, ref: FileRef) -> int:
        found = self._files.find(tenant, ref)
        return found.brought_at if isinstance(found, Upload) else 0

    def has(self, digest: str) -> bool:
        """Return True if bytes have a name, so that a prompt may need them."""
        return digest in self._kept

    def used_at(self, upload: Upload) -> int:
        """Return the time of an upload's last use, in milliseconds since 1970; 0 if it is gone."""
        kept = self._kept.get(upload.digest)
        return kept.used_at if kept is not None else 0

    def take_ended(self) -> list[tuple[str, FileRef]]:
        """Return the (tenant, name) of uploads that the earlier run was to delete, this once."""
        ended, self._ended = self._ended, []
        return ended

    async def delete(self, tenant: str, ref: FileRef) -> Upload | None:
        """Delete a tenant's upload: its name, and its bytes if they have no other name. Return None if there is none.

        Raises:
            UploadInUse: an open job of the tenant names it.
            StoreError: it is deleted, but a restart might bring it back.
        """
        async with self._moving:
            found = self._files.find(tenant, ref)
            if not isinstance(found, Upload):
                return None
            if self._is_named(tenant, ref):
                raise UploadInUse
            self._files.drop_upload(tenant, ref)
            # One commit, so that after a crash the start deletes bytes that have no name any more.
            removal = UploadRemoval(tenant, ref.kind, ref.subfolder, ref.filename)
            forgotten = self._files.deleted.add_upload(found.digest)
            self._store.write([removal, *forgotten, *self._files.take_dropped()])
            await self._unname(tenant, ref, found.digest)
        _log.info("upload_deleted", tenant=tenant, digest=found.digest)
        await self._store.try_write([])
        return found

    async def delete_stored(self, tenant: str, ref: FileRef) -> None:
        """Delete a tenant's upload that object storage alone has, if there is one.

        Raises:
            UploadInUse: an open job of the tenant names it.
            StoreError: it is deleted, but a restart might bring it back.
        """
        found = self._files.find(tenant, ref)
        if isinstance(found, Stored) and found.upload:
            if self._is_named(tenant, ref):
                raise UploadInUse
            self._files.drop_stored(tenant, ref)
            self._store.write([*self._files.deleted.add_upload(found.upload), *self._files.take_dropped()])
            await self._store.try_write([])

    def _name(self, tenant: str, ref: FileRef, upload: Upload, used_at: int) -> None:
        kept = self._kept.get(upload.digest)
        if kept is None:
            kept = self._kept[upload.digest] = _Kept(upload.size, used_at, used_at)
            self.bytes += upload.size
        kept.used_at = max(kept.used_at, used_at)
        kept.names.add((tenant, ref))
        self._files.put_upload(tenant, ref, upload)

    async def _unname(self, tenant: str, ref: FileRef, digest: str) -> None:
        """Take a name from bytes. Delete the bytes if they have no other name."""
        kept = self._kept.get(digest)
        if kept is None:
            return
        kept.names.discard((tenant, ref))
        if not kept.names:
            await self._let_go(digest)

    def _is_in_use(self, kept: _Kept) -> bool:
        return any(self._is_named(tenant, ref) for tenant, ref in kept.names)

    def bytes_of(self, tenant: str) -> int:
        """Return the size of a tenant's uploads, in bytes, each once, however many names it has."""
        return sum({upload.digest: upload.size for upload in self._files.uploads(tenant).values()}.values())

    async def _make_room_of(self, tenant: str, blob: Blob) -> None:
        """Drop the tenant's least recently used uploads, until its own limit leaves room for one more."""
        maximum = self._limits.of(tenant).upload_bytes
        if maximum is None:
            return
        sizes = {upload.digest: upload.size for upload in self._files.uploads(tenant).values()}
        if blob.digest in sizes:
            return
        used = sum(sizes.values())
        for digest in sorted(sizes, key=lambda digest: self._kept[digest].used_at):
            if used + blob.size <= maximum:
                return
            if self._is_in_use(self._kept[digest]):
                continue
            used -= sizes[digest]
            await self._disown(tenant, digest)
        if used + blob.size > maximum:
            raise no_room(maximum, used, blob.size)

    async def _disown(self, tenant: str, digest: str) -> None:
        """Take all of a tenant's names from bytes. Delete the bytes if they are nobody else's."""
        kept = self._kept[digest]
        own = [ref for owner, ref in kept.names if owner == tenant]
        for ref in own:
            kept.names.discard((tenant, ref))
            found = self._files.find(tenant, ref)
            if isinstance(found, Upload) and found.digest == digest:
                self._files.drop_upload(tenant, ref, keeps_copy=True)
        self._store.write([UploadRemoval(tenant, ref.kind, ref.subfolder, ref.filename) for ref in own])
        if not kept.names:
            await self._let_go(digest)

    async def _make_room(self, blob: Blob) -> None:
        if blob.digest in self._kept:
            return
        excess = self.bytes + self.blobs.aside_bytes + blob.size - self._settings.quota
        if excess > 0 and blob.size <= self._settings.quota:
            # What lies aside goes first, because nothing names it.
            await self._evict(excess - await self.blobs.free_aside(excess))
        if self.bytes + blob.size > self._settings.quota:
            raise QuotaExceeded(
                f"{self.bytes} of {self._settings.quota} bytes are kept and in use; this file has {blob.size}"
            )

    async def _evict(self, wanted: int) -> None:
        """Delete the least recently used uploads, until `wanted` bytes are free."""
        for digest in sorted(self._kept, key=lambda digest: self._kept[digest].used_at):
            if wanted <= 0:
                return
            kept = self._kept[digest]
            if not self._is_in_use(kept):
                wanted -= kept.size
                await self._let_go(digest)

    async def _let_go(self, digest: str, *, aside: bool = False) -> None:
        kept = self._kept.pop(digest)
        self.bytes -= kept.size
        for tenant, ref in kept.names:
            found = self._files.find(tenant, ref)
            if isinstance(found, Upload) and found.digest == digest:
                self._files.drop_upload(tenant, ref, keeps_copy=True)
        self._store.write([UploadRemoval(tenant, ref.kind, ref.subfolder, ref.filename) for tenant, ref in kept.names])
        await (self.blobs.put_aside(digest) if aside else self.blobs.remove(digest))

    async def _sweep_again(self) -> None:
        try:
            await self.sweep(time.time(), time.monotonic())
        except StoreError as error:
            _log.error("uploads_sweep_failed", error=str(error))

    async def sweep(self, wall: float, monotonic: float) -> None:
        """Put aside uploads unused for `uploads.keep`, and delete blobs that lay aside for `uploads.aside`.

        Args:
            wall: the time, in seconds since 1970.
            monotonic: the seconds of a clock that can't be set.

        Raises:
            StoreError: the disk fails.
        """
        async with self._moving:
            served, self._swept_at = monotonic - self._swept_at, monotonic
            deleted = await self.blobs.sweep_aside(served, self._settings.aside)
            if deleted:
                _log.info("uploads_deleted", uploads=deleted, lay_aside_seconds=self._settings.aside)
            used_at = {digest: kept.used_at for digest, kept in self._kept.items()}
            for digest in self._expiry.expired(used_at, wall, monotonic):
                if not self._is_in_use(self._kept[digest]):
                    await self._let_go(digest, aside=True)


def _now() -> int:
    return int(time.time() * 1000)
