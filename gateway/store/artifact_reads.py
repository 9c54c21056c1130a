"""Protocol of a store's reads of files in object storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.store.artifact_records import ArtifactRecord


class ArtifactReads(Protocol):
    """Reads of files in object storage."""

    async def artifacts(self) -> list[ArtifactRecord]:
        """Return all files of object storage, the oldest first."""

    async def artifact_page(self, after: str, limit: int) -> list[ArtifactRecord]:
        """Return at most `limit` files of object storage by key, beginning behind the key `after`."""

    async def known_objects(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys, at most 1,000, that are objects of files, or their copies without metadata."""
