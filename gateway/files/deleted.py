"""Files that their owners deleted. Their bytes may lie on backends still, and nobody is to find them there. Pure.

A file of a backend is known by its name and its ETag there, an upload by its digest, whatever a backend calls it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

from gateway.comfy.file_refs import FileRef
from gateway.files.identity import CACHED, GONE, UNTOLD, are_same
from gateway.files.placements import spelled_alike
from gateway.store.protocol import DeletedRecord, DeletedRemoval

MAX_DELETED = 300_000
MAX_DROPPED = 10
# The kind of an upload, whose filename is its digest. It is none of ComfyUI's three.
_UPLOAD = "upload"
Key = tuple[str, FileRef]


@dataclass(frozen=True, slots=True)
class Deleted:
    """A deleted file: the tenant that deleted it, and the ETag by which the tenant knew it."""

    tenant: str
    etag: str

    def is_it(self, etag: str | None) -> bool:
        """Return True if a file with this ETag is the deleted one; True if either ETag is unknown."""
        if GONE in (etag, self.etag):
            return False
        return not etag or self.etag == UNTOLD or are_same(etag, self.etag)

    def is_surely(self, etag: str | None) -> bool:
        """Return True if a file with this ETag is the deleted one, and both ETags are known."""
        return etag not in (None, UNTOLD, GONE) and self.etag != UNTOLD and self.is_it(etag)


class DeletedFiles:
    """Deleted files, the newest. Methods return changes to persist, and write nothing.

    Args:
        maximum: maximum number of files to remember, of all tenants together.
    """

    def __init__(self, maximum: int = MAX_DELETED) -> None:
        self._maximum = maximum
        # In the order of their deletion.
        self._known: dict[Key, Deleted] = {}
        # The backends that have a deleted file under a name, in the spelling of `spelled_alike`.
        self._alike: dict[FileRef, dict[Key, None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, tenant: str, backend: str, ref: FileRef, etag: str | None) -> list[DeletedRecord | DeletedRemoval]:
        """Remember that a tenant deleted its file of a backend. `etag` is the ETag by which the tenant knew it."""
        return self._add((backend, ref), Deleted(tenant, UNTOLD if etag in (None, CACHED) else etag))

    def add_upload(self, digest: str) -> list[DeletedRecord | DeletedRemoval]:
        """Remember that an owner deleted an upload with these bytes."""
        return self._add(_key_of(digest), Deleted("", UNTOLD))

    def _add(self, key: Key, deleted: Deleted) -> list[DeletedRecord | DeletedRemoval]:
        backend, ref = key
        now = int(time.time() * 1000)
        record = DeletedRecord(backend, ref.kind, ref.subfolder, ref.filename, deleted.tenant, deleted.etag, now)
        self._put(key, deleted)
        # A few at a time, because after a lower maximum there may be many.
        excess = list(islice(self._known, min(max(len(self._known) - self._maximum, 0), MAX_DROPPED)))
        return [record, *(self._drop(each) for each in excess)]

    def _put(self, key: Key, deleted: Deleted) -> None:
        self._known.pop(key, None)
        self._known[key] = deleted
        self._alike.setdefault(spelled_alike(key[1]), {})[key] = None

    def _drop(self, key: Key) -> DeletedRemoval:
        del self._known[key]
        alike = spelled_alike(key[1])
        self._alike[alike].pop(key)
        if not self._alike[alike]:
            del self._alike[alike]
        return DeletedRemoval(key[0], key[1].kind, key[1].subfolder, key[1].filename)

    def restore(self, record: DeletedRecord) -> None:
        """Put back a file that an earlier run remembered."""
        ref = FileRef(record.kind, record.subfolder, record.filename)
        self._put((record.backend, ref), Deleted(record.tenant, record.etag))

    def replaced(self, backend: str, ref: FileRef) -> list[DeletedRemoval]:
        """Forget a deleted file, because a job wrote another one under its name."""
        return [self._drop((backend, ref))] if (backend, ref) in self._known else []

    def find(self, backend: str, ref: FileRef) -> Deleted | None:
        """Return the deleted file of this name on a backend; None if there is none."""
        return self._known.get((backend, ref))

    def has_upload(self, digest: str) -> bool:
        """Return True if an owner deleted an upload with these bytes."""
        return _key_of(digest) in self._known

    def hides(self, backend: str, ref: FileRef, digest: str | None) -> bool:
        """Return True if a name on a backend may lead to a deleted file.

        Args:
            digest: the digest of the bytes that the gateway put there under this name; None if it put none there.
        """
        if not self._known:
            return False
        if digest is not None and self.has_upload(digest):
            return True
        return backend in self.backends_with(ref)

    def backends_with(self, ref: FileRef) -> set[str]:
        """Return the backends that have a deleted file of a job under a name, however they spell it."""
        return {backend for backend, _ in self._alike.get(spelled_alike(ref), ())}


def _key_of(digest: str) -> Key:
    return "", FileRef(_UPLOAD, "", digest)
