"""Values of the index of files: the places where a tenant's file is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.comfy.file_refs import FileRef
from gateway.files.identity import CACHED, UNTOLD


@dataclass(frozen=True, slots=True)
class Stored:
    """A file whose bytes are in object storage, or on their way there on the gateway's own disk.

    `key` is the object's. `digest` is the BLAKE3 of the bytes, in hex. `shared_key` is the key of the copy without
    metadata, empty if there is none. `stored_at` is in milliseconds since 1970. `upload` is the SHA-256 of an upload's
    bytes, empty for a file that a job made.
    """

    key: str
    size: int
    digest: str
    stored_at: int = 0
    shared_key: str = ""
    upload: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """Place of a file: the backend, and the file's name there.

    `stored` tells if object storage has the file, too: then its bytes come from there, whatever the backend has.
    `etag` identifies the file there (see identity.py); it is None while the job that writes the file runs. `before` is
    the value of `etag` until that job began.
    """

    backend: str
    there: FileRef
    etag: str | None = UNTOLD
    before: str = UNTOLD
    stored: Stored | None = None

    @property
    def is_known(self) -> bool:
        """Return True if the file was checked after the end of its job."""
        return self.etag not in (None, CACHED)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client brought: its bytes are in the gateway's own store, under their SHA-256.

    `brought_at` is the time of the upload in milliseconds since 1970, 0 if unknown. `stored` tells if object storage
    has the bytes, too.
    """

    digest: str
    size: int
    brought_at: int = field(default=0, compare=False)
    stored: Stored | None = field(default=None, compare=False)


class Origin(StrEnum):
    """Origin of a reported file: its job WROTE it, an EARLIER job did (ComfyUI's cache), or the job only NAMED it."""

    WROTE = "wrote"
    EARLIER = "earlier"
    NAMED = "named"


# A file of a tenant. `Stored` alone means: its backend lost it, or has another file under its name by now.
Place = Holder | Upload | Stored


def stored_of_place(place: Place | None) -> Stored | None:
    """Return the copy in object storage of a tenant's file; None if there is none."""
    return place if place is None or isinstance(place, Stored) else place.stored


def stored_key(place: Place | None) -> str:
    """Return the key of the copy in object storage of a tenant's file; empty if there is none."""
    stored = stored_of_place(place)
    return "" if stored is None else stored.key
