"""Records of the Comfy API v2. Times are milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class V2KeyRecord:
    """An Idempotency-Key that was used: the digest of the key, and the time of its use."""

    tenant: str
    digest: str
    taken_at: int


@dataclass(frozen=True, slots=True)
class V2KeyRemoval:
    """An Idempotency-Key that is free again, because its submission made no job, or because its time is over."""

    tenant: str
    digest: str


@dataclass(frozen=True, slots=True)
class V2NoteRecord:
    """Note about a job: what its submission said beside the prompt, as JSON."""

    tenant: str
    prompt_id: str
    note: str


@dataclass(frozen=True, slots=True)
class V2NoteRemoval:
    """A note that is of no use any more, because its job is forgotten."""

    tenant: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class V2CanceledRecord:
    """A job that was cancelled without a history entry."""

    tenant: str
    prompt_id: str
    created_at: int
    started_at: int | None
    ended_at: int


@dataclass(frozen=True, slots=True)
class V2CanceledRemoval:
    """A cancelled job that is remembered no more."""

    tenant: str
    prompt_id: str


@dataclass(frozen=True, slots=True)
class V2AssetRecord:
    """An asset: a record about one of a tenant's uploads.

    `digest` is the SHA-256 of the bytes, `hash` their BLAKE3. `owns_upload` is 1 if the upload is deleted with the
    asset.
    """

    id: str
    tenant: str
    kind: str
    subfolder: str
    filename: str
    digest: str
    hash: str
    size: int
    content_type: str
    file_path: str
    created_at: int
    expires_at: int | None
    owns_upload: int


@dataclass(frozen=True, slots=True)
class V2AssetRemoval:
    """An asset that was deleted, or whose time is over."""

    id: str


V2Change = (
    V2KeyRecord
    | V2KeyRemoval
    | V2NoteRecord
    | V2NoteRemoval
    | V2CanceledRecord
    | V2CanceledRemoval
    | V2AssetRecord
    | V2AssetRemoval
)


class V2Reads(Protocol):
    """The reads of a store that the Comfy API v2 needs at a start."""

    async def v2_keys(self) -> list[V2KeyRecord]:
        """Return all used Idempotency-Keys, the oldest first."""

    async def v2_notes(self) -> list[V2NoteRecord]:
        """Return all notes about jobs."""

    async def v2_canceled(self) -> list[V2CanceledRecord]:
        """Return all jobs that were cancelled without a history entry, the oldest first."""

    async def v2_assets(self) -> list[V2AssetRecord]:
        """Return all assets, the oldest first."""
