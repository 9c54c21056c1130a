"""Upkeep of object storage: its retention, and the comparison of the bucket with the journal."""

from __future__ import annotations

from collections.abc import Callable

from gateway.artifacts.bucket_sweep import BucketSweep
from gateway.artifacts.object_store import ObjectStore
from gateway.artifacts.retention import ArtifactRetention
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex
from gateway.settings.storage import StorageSettings
from gateway.store.protocol import Store


class Upkeep:
    """Both parts. Call `start` once the index has its files, and `close` at the end."""

    def __init__(
        self,
        settings: StorageSettings,
        store: ObjectStore,
        files: FileIndex,
        journal: Store,
        is_named: Callable[[str, FileRef], bool],
    ) -> None:
        self._retention = ArtifactRetention(settings.retention, files, journal, is_named)
        self._bucket_sweep = BucketSweep(store, files, journal, settings.sweep_every)

    def start(self) -> None:
        """Begin."""
        self._retention.start()
        self._bucket_sweep.start()

    async def close(self) -> None:
        """Stop."""
        await self._retention.close()
        await self._bucket_sweep.close()
