"""Assets of the Comfy API v2: records about a tenant's uploads, found by id and by the BLAKE3 of their bytes.

The bytes are in the upload store, once, whoever brought them. All that a caller is told (known or new, in use) depends
on the tenant's own assets alone, so that nothing tells of other tenants' files.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder, Stored, Upload
from gateway.files.uploads import UploadInUse, Uploads
from gateway.files.values import Place
from gateway.store.blobs import BlobWriter
from gateway.store.protocol import Store, StoreError
from gateway.store.v2_records import V2AssetRecord, V2AssetRemoval
from gateway.web.v2.model import URL_SECONDS, Links, iso

# Assets of one tenant, and those of them that have the same bytes, because all of these are looked at.
MAX_ASSETS, MAX_NAMES = 50_000, 100
# Assets that one sweep looks at.
BATCH = 500
HASH = "blake3:"


class TooManyAssets(Exception):
    """Refusal of a tenant that has as many assets as it may have."""


@dataclass(frozen=True, slots=True)
class NewAsset:
    """An asset to be made: its name in the upload store, the path that the client gave, its type, its end."""

    ref: FileRef
    file_path: str
    content_type: str
    expires_at: int | None


class Assets:
    """Assets of all tenants. Times are milliseconds since 1970."""

    def __init__(self, store: Store, files: FileIndex, uploads: Uploads) -> None:
        self._store = store
        self._files = files
        self._uploads = uploads
        self._known: dict[str, V2AssetRecord] = {}
        self._own: dict[str, dict[str, None]] = {}
        self._by_hash: dict[tuple[str, str], dict[str, None]] = {}
        self._swept: Iterator[str] = iter(())
        # Held while a tenant's asset is made, because the same one may be sent twice at a time.
        self._making: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def restore(self) -> None:
        """Read the assets of earlier runs.

        Raises:
            StoreError: the journal can't be read.
        """
        for record in await self._store.v2_assets():
            self._put(record)

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, tenant: str | None, asset_id: str) -> V2AssetRecord | None:
        """Return an asset of a tenant, or of any tenant (None); None if there is none any more."""
        record = self._known.get(asset_id)
        if record is None or tenant not in (None, record.tenant) or not self._is_there(record):
            return None
        return record

    def by_hash(self, tenant: str, hash_: str) -> list[V2AssetRecord]:
        """Return the assets of a tenant with these bytes, the oldest first."""
        ids = self._by_hash.get((tenant, hash_), {})
        return [record for id_ in ids if self._is_there(record := self._known[id_])]

    def _is_there(self, record: V2AssetRecord) -> bool:
        return (record.expires_at is None or record.expires_at > _now()) and self._has_bytes(record)

    def _has_bytes(self, record: V2AssetRecord) -> bool:
        return digest_of(self._files.find(record.tenant, ref_of(record))) == record.digest

    # -- changes -------------------------------------------------------------------------------------------------

    async def add(self, tenant: str, new: NewAsset, writer: BlobWriter, hash_: str) -> tuple[V2AssetRecord, bool]:
        """Keep an asset whose bytes have all been written. Return it, and True if the tenant had no such bytes.

        Raises:
            TooManyAssets: the tenant has as many as it may have.
            QuotaExceeded, LimitReached, StoreError: as `Uploads.add`.
        """
        async with self._turn(tenant):
            return await self._add(tenant, new, writer, hash_)

    def _turn(self, tenant: str) -> asyncio.Lock:
        return self._making.setdefault(tenant, asyncio.Lock())

    async def _add(self, tenant: str, new: NewAsset, writer: BlobWriter, hash_: str) -> tuple[V2AssetRecord, bool]:
        known = self.by_hash(tenant, hash_)
        if (same := _same(known, new)) is not None:
            # Kept again, because an upload may be on its way out.
            await self._uploads.add(tenant, ref_of(same), writer, overwrite=False)
            return await self._extended(same, new), False
        self._check_count(tenant, known)
        before = self._files.find(tenant, new.ref)
        ref = await self._uploads.add(tenant, new.ref, writer, overwrite=False)
        record = await self._made(tenant, new, ref, hash_, existed=ref == new.ref and before is not None)
        return record, not known

    async def mint(self, tenant: str, new: NewAsset, hash_: str) -> tuple[V2AssetRecord, bool] | None:
        """Make an asset of bytes that the tenant has. Return it, and True if it is a new one; None without bytes.

        Raises:
            TooManyAssets, LimitReached, StoreError: as `add`.
        """
        async with self._turn(tenant):
            return await self._mint(tenant, new, hash_)

    async def _mint(self, tenant: str, new: NewAsset, hash_: str) -> tuple[V2AssetRecord, bool] | None:
        known = self.by_hash(tenant, hash_)
        if not known:
            return None
        if (same := _same(known, new)) is not None:
            await self._uploads.name_again(tenant, ref_of(same), ref_of(same))
            return await self._extended(same, new), False
        self._check_count(tenant, known)
        before = self._files.find(tenant, new.ref)
        # If object storage alone has the bytes, the new asset shares the name that they have.
        there = self._files.find(tenant, ref_of(known[0]))
        is_shared = isinstance(there, Stored)
        ref = ref_of(known[0]) if is_shared else await self._uploads.name_again(tenant, ref_of(known[0]), new.ref)
        if ref is None:
            return None
        existed = is_shared or (ref == new.ref and before is not None)
        return await self._made(tenant, new, ref, hash_, existed=existed), True

    def _check_count(self, tenant: str, known: list[V2AssetRecord]) -> None:
        if len(self._own.get(tenant, ())) >= MAX_ASSETS:
            raise TooManyAssets(f"{MAX_ASSETS} assets are kept already; delete some")
        if len(known) >= MAX_NAMES:
            raise TooManyAssets(f"{MAX_NAMES} assets with these bytes are kept already; delete some")

    async def _made(self, tenant: str, new: NewAsset, ref: FileRef, hash_: str, *, existed: bool) -> V2AssetRecord:
        found = self._files.find(tenant, ref)
        if found is None or isinstance(found, Holder) or not (digest := digest_of(found)):
            raise StoreError("the file was dropped before it could be named; send it again")
        # If a client brought the file on another route before, it stays when the asset is deleted.
        known = (self._known[id_] for id_ in self._by_hash.get((tenant, hash_), ()))
        is_asset = any(ref_of(each) == ref for each in known if each.owns_upload)
        record = V2AssetRecord(
            str(uuid.uuid4()),
            tenant,
            ref.kind,
            ref.subfolder,
            ref.filename,
            digest,
            hash_,
            found.size,
            new.content_type,
            new.file_path,
            _now(),
            new.expires_at,
            int(not existed or is_asset),
        )
        await self._store.try_write([record])
        self._put(record)
        return record

    async def _extended(self, record: V2AssetRecord, new: NewAsset) -> V2AssetRecord:
        """Return an asset that is asked for again. That extends its time, and never shortens it."""
        if record.expires_at is not None and (new.expires_at is None or new.expires_at > record.expires_at):
            record = replace(record, expires_at=new.expires_at)
            await self._store.try_write([record])
            if record.id in self._known:
                self._known[record.id] = record
        self._uploads.use(record.digest)
        return record

    async def delete(self, record: V2AssetRecord) -> None:
        """Delete an asset; and its upload, unless another asset of the tenant has it, or it was brought otherwise.

        Raises:
            UploadInUse: an open job of the tenant names the upload.
            StoreError: the asset is deleted, but a restart might bring it back.
        """
        ref = ref_of(record)
        others = [each for each in self.by_hash(record.tenant, record.hash) if each.id != record.id]
        if record.owns_upload and not any(ref_of(each) == ref for each in others) and self._has_bytes(record):
            if isinstance(self._files.find(record.tenant, ref), Stored):
                await self._uploads.delete_stored(record.tenant, ref)
            else:
                await self._uploads.delete(record.tenant, ref)
        self._drop(record)
        await self._store.try_write([])

    def _put(self, record: V2AssetRecord) -> None:
        self._known[record.id] = record
        self._own.setdefault(record.tenant, {})[record.id] = None
        self._by_hash.setdefault((record.tenant, record.hash), {})[record.id] = None

    def _drop(self, record: V2AssetRecord) -> None:
        if self._known.pop(record.id, None) is None:
            return
        for index, key in ((self._own, record.tenant), (self._by_hash, (record.tenant, record.hash))):
            _discard(index, key, record.id)
        self._store.write([V2AssetRemoval(record.id)])

    async def sweep(self, now: int) -> None:
        """Delete some assets whose time is over, and forget those whose bytes are gone."""
        looked = list(islice(self._swept, BATCH))
        if not looked:
            self._swept = iter(list(self._known))
            looked = list(islice(self._swept, BATCH))
        for asset_id in looked:
            record = self._known.get(asset_id)
            if record is None:
                continue
            if not self._has_bytes(record):
                self._drop(record)
            elif record.expires_at is not None and record.expires_at <= now:
                try:
                    await self.delete(record)
                except (UploadInUse, StoreError):
                    # The next sweep tries again.
                    continue


def _discard(index: Any, key: Any, asset_id: str) -> None:
    own = index.get(key, {})
    own.pop(asset_id, None)
    if not own:
        index.pop(key, None)


def digest_of(place: Place | None) -> str:
    """Return the SHA-256 of an upload's bytes, which object storage alone may have; empty if it is no upload."""
    if isinstance(place, Upload):
        return place.digest
    return place.upload if isinstance(place, Stored) else ""


def _same(known: list[V2AssetRecord], new: NewAsset) -> V2AssetRecord | None:
    return next((each for each in known if each.file_path == new.file_path), None)


def _now() -> int:
    return int(time.time() * 1000)


def ref_of(record: V2AssetRecord) -> FileRef:
    """Return the name of an asset's upload."""
    return FileRef(record.kind, record.subfolder, record.filename)


def name_of(record: V2AssetRecord) -> str:
    """Return the text by which a graph names an asset's upload."""
    return f"{record.subfolder}/{record.filename}" if record.subfolder else record.filename


def hash_of(text: str) -> str | None:
    """Return the digits of a hash, such as ``blake3:…``; None if the text is none."""
    prefix, _, digits = text.strip().lower().partition(":")
    is_hash = prefix == HASH[:-1] and len(digits) == 64 and all(each in "0123456789abcdef" for each in digits)
    return digits if is_hash else None


def asset_object(record: V2AssetRecord, links: Links, now: float, created_new: bool | None = None) -> dict[str, Any]:
    """Return the object of an asset. `now` is in seconds since 1970."""
    return {
        "id": record.id,
        "hash": f"{HASH}{record.hash}",
        "size_bytes": record.size,
        "content_type": record.content_type,
        "file_path": record.file_path,
        "created_at": iso(record.created_at),
        "url": links.content(record.id),
        "url_expires_at": iso((now + URL_SECONDS) * 1000),
        "expires_at": None if record.expires_at is None else iso(record.expires_at),
        **({} if created_new is None else {"created_new": created_new}),
    }
