"""Records of files in object storage. Times are milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A tenant's file that is to be copied to object storage, is there, or is to be deleted there.

    `kind`, `subfolder` and `filename` are the tenant's name for it; all are empty once the tenant has the file no more.
    `backend`, `upstream_subfolder`, `upstream` and `etag` tell where the bytes came from; an upload has no `backend`,
    and its SHA-256 as `etag`. `state` is ``pending``, ``spooled`` (the bytes are on the gateway's disk), ``stored`` or
    ``deleting``. `digest` is the BLAKE3 of the object in hex, empty until the bytes are read. `shared_key` is the key
    of the copy without metadata, empty if there is none. `next_at` is the time of the next try. `saver` is the digest
    of the part of the graph that wrote the file, empty if it is unknown.
    """

    key: str
    tenant: str
    kind: str
    subfolder: str
    filename: str
    prompt_id: str
    backend: str
    upstream_subfolder: str
    upstream: str
    etag: str
    state: str
    size: int = 0
    digest: str = ""
    shared_key: str = ""
    created_at: int = 0
    stored_at: int = 0
    tries: int = 0
    next_at: int = 0
    saver: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactRemoval:
    """A row of a file that is in object storage no more, and will not be."""

    key: str


@dataclass(frozen=True, slots=True)
class ArtifactDeletion:
    """The order to delete an object, because no name leads to it any more. Its row goes once the object is gone."""

    key: str


ArtifactChange = ArtifactRecord | ArtifactRemoval | ArtifactDeletion
