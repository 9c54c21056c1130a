"""Reads of files in object storage, for a store that can run a query."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.store.artifact_records import ArtifactRecord
from gateway.store.artifact_statements import ARTIFACTS, OBJECTS, PAGE, SHARED_OBJECTS


class ArtifactQueries:
    """Reads of files in object storage. The subclass is a store."""

    async def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        raise NotImplementedError

    async def _read_artifacts(self, sql: str, parameters: tuple[object, ...] = ()) -> list[ArtifactRecord]:
        return [ArtifactRecord(*row) for row in await self._rows(sql, parameters)]  # type: ignore[arg-type]

    async def artifacts(self) -> list[ArtifactRecord]:
        """Return all files of object storage, the oldest first."""
        return await self._read_artifacts(ARTIFACTS)

    async def artifact_page(self, after: str, limit: int) -> list[ArtifactRecord]:
        """Return at most `limit` files of object storage by key, beginning behind the key `after`."""
        return await self._read_artifacts(PAGE, (after, limit))

    async def known_objects(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys, at most 1,000, that are objects of files, or their copies without metadata."""
        if not keys:
            return set()
        marks = ", ".join("?" * len(keys))
        found = [await self._rows(sql.replace("?", marks), tuple(keys)) for sql in (OBJECTS, SHARED_OBJECTS)]
        return {str(row[0]) for rows in found for row in rows}
