"""Values of the copies in object storage, and what their records mean. Pure."""

from __future__ import annotations

import asyncio
import mimetypes
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from gateway.comfy.file_refs import FileRef
from gateway.files.identity import UNTOLD, Fresh, Known
from gateway.files.index import Holder, Stored, Upload
from gateway.files.values import Place
from gateway.store.artifact_records import ArtifactRecord

# The sources of copies whose bytes are on the gateway's own disk: in the spool, or uploads. No backend has such a name.
SPOOL, UPLOADS = "/spool", ""
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._ ()~-]")
# A browser shows nothing else from the bucket's address, because a page there could run a tenant's code.
_SHOWN = ("image/", "video/", "audio/")
_NOT_SHOWN = "image/svg+xml"


class State(StrEnum):
    """State of a row: see `ArtifactRecord`."""

    PENDING = "pending"
    SPOOLED = "spooled"
    STORED = "stored"
    DELETING = "deleting"


class Outcome(StrEnum):
    """End of an attempt, as metrics count it.

    STORED and SPOOLED: the bytes are safe. FAILED: tried again later. CHANGED: another file has its name by now.
    MISSING: its backend has no such file. SKIPPED: too many wait already.
    """

    STORED = "stored"
    SPOOLED = "spooled"
    FAILED = "failed"
    CHANGED = "changed"
    MISSING = "missing"
    SKIPPED = "skipped"


@dataclass(slots=True, eq=False)
class Copy:
    """A copy that is to be made.

    Attributes:
        file: the file when the copy was planned, as the index had it.
        is_journalled: True once the journal has its row, or will have it with what is written next.
        is_settled: True once the index leads to it.
        is_dropped: True if no name leads to it any more.
        may_exist: True if the store may have the object, or a part of it.
        tries: attempts that failed in this run.
        is_running: True during an attempt.
        tried: set once an attempt has ended, well or not. None if no job's end waits for the copy.
    """

    record: ArtifactRecord
    file: Holder | Upload | None
    is_journalled: bool = False
    is_settled: bool = False
    is_dropped: bool = False
    may_exist: bool = False
    tries: int = 0
    is_running: bool = False
    tried: asyncio.Event | None = None

    def note_begun(self) -> None:
        """Note that the store may have the object from now on."""
        self.may_exist = True

    @property
    def is_urgent(self) -> bool:
        """Return True if a job's end waits for it."""
        return self.tried is not None and not self.tried.is_set()

    @property
    def has_left_something(self) -> bool:
        """Return True if the store or the spool may have bytes of it."""
        return self.may_exist or self.record.state != State.PENDING

    @property
    def key(self) -> str:
        """Return the key of its object."""
        return self.record.key

    @property
    def source(self) -> str:
        """Return the backend that has the bytes, or `SPOOL` or `UPLOADS`."""
        return SPOOL if self.record.state == State.SPOOLED else self.record.backend

    @property
    def name(self) -> tuple[str, FileRef]:
        """Return the tenant and its name for the file."""
        return self.record.tenant, visible_of(self.record)


def visible_of(record: ArtifactRecord) -> FileRef:
    """Return the tenant's name for a file."""
    return FileRef(record.kind, record.subfolder, record.filename)


def there_of(record: ArtifactRecord) -> FileRef:
    """Return the name of a file on its backend."""
    return FileRef(record.kind, record.upstream_subfolder, record.upstream)


def stored_of(record: ArtifactRecord) -> Stored:
    """Return the index's value of a copy that is safe."""
    upload = record.etag if record.backend == UPLOADS else ""
    return Stored(record.key, record.size, record.digest, record.stored_at, record.shared_key, upload)


def new_record(key: str, tenant: str, visible: FileRef, file: Holder | Upload, prompt_id: str) -> ArtifactRecord:
    """Return the row of a copy that is to be made of a tenant's file."""
    backend, there, etag = UPLOADS, visible, ""
    if isinstance(file, Holder):
        backend, there, etag = file.backend, file.there, file.etag or ""
    return ArtifactRecord(
        key,
        tenant,
        visible.kind,
        visible.subfolder,
        visible.filename,
        prompt_id,
        backend,
        there.subfolder,
        there.filename,
        file.digest if isinstance(file, Upload) else etag,
        State.PENDING,
        created_at=int(time.time() * 1000),
    )


def is_of_place(record: ArtifactRecord, place: Place | None) -> bool:
    """Return True if the place of a name is the file that a record is of."""
    return isinstance(place, (Holder, Upload)) and is_of(record, place)


def is_of(record: ArtifactRecord, file: Holder | Upload) -> bool:
    """Return True if a record is of the file that an index has."""
    if isinstance(file, Upload):
        return (record.backend, record.etag) == (UPLOADS, file.digest)
    return (file.backend, file.there, file.etag) == (record.backend, there_of(record), record.etag)


def expected_of(record: ArtifactRecord, headers: Mapping[str, str]) -> Known:
    """Return the identity that a file must have to be copied.

    If its backend tells no ETag, the file must not be younger than the plan to copy it, because it may be another
    tenant's by then.
    """
    if record.etag == UNTOLD and "Last-Modified" in headers:
        return Fresh(until=record.created_at / 1000)
    return record.etag


def content_type_of(filename: str) -> str:
    """Return the media type of a file by its name."""
    return mimetypes.guess_type(filename)[0] or "application/octet-stream"


def disposition_of(filename: str) -> str:
    """Return the Content-Disposition of an object, for any characters in its name (RFC 6266)."""
    kind = content_type_of(filename)
    shown = "inline" if kind.startswith(_SHOWN) and kind != _NOT_SHOWN else "attachment"
    encoded = quote(filename.encode("utf-8", "replace"), safe="")
    return f"{shown}; filename=\"{_NOT_PLAIN.sub('_', filename)}\"; filename*=UTF-8''{encoded}"
