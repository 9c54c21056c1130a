"""Deletion of objects that no name leads to: first the object, then its row, so that a crash leaves neither."""

from __future__ import annotations

import time
from collections import deque
from random import random

from gateway.artifacts.keys import spool_name
from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.schedule import wait_after
from gateway.artifacts.spool import ArtifactSpool
from gateway.artifacts.store_watch import StoreWatch
from gateway.store.artifact_records import ArtifactRemoval
from gateway.store.protocol import Store, StoreError
from gateway.telemetry import logs

_log = logs.get("storage")

# Objects that are deleted at a time.
BATCH = 100


class Deletions:
    """Objects that are to be deleted. The journal has an order for each, or gets it before the next turn."""

    def __init__(
        self,
        store: ObjectStore,
        spool: ArtifactSpool,
        journal: Store,
        health: StoreWatch,
    ) -> None:
        self._store = store
        self._spool = spool
        self._journal = journal
        self._health = health
        self._waiting: deque[tuple[str, str]] = deque()
        # The keys of these objects and of those that are being deleted.
        self._keys: set[str] = set()
        # Failures since the last success, and the time of the next try.
        self._failures, self._again_at = 0, 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: str, shared_key: str = "") -> None:
        """Delete an object, and its copy without metadata if it has one."""
        self._waiting.append((key, shared_key))
        self._keys |= {key, shared_key} - {""}

    def has(self, key: str) -> bool:
        """Return True if an object is to be deleted."""
        return key in self._keys

    async def round(self) -> None:
        """Delete what waits, until the store fails. After failures the next round comes later."""
        while self._waiting and time.monotonic() >= self._again_at and self._health.admits(time.monotonic()):
            if not await self._delete_some([self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]):
                break

    async def _delete_some(self, some: list[tuple[str, str]]) -> bool:
        done = False
        try:
            # Wait for the orders. If the gateway ends before them, the names come back and must lead somewhere.
            await self._journal.write([])
            self._health.begin()
            await self._store.delete([key for pair in some for key in pair if key])
            done = True
        except StorageError as error:
            self._note_failure(error)
        except StoreError as error:
            _log.info("storage_deletion_postponed", error=str(error))
        finally:
            if not done:
                self._waiting.extendleft(reversed(some))
                self._health.ended()
        if done:
            self._failures = 0
            self._health.note_success()
            self._keys.difference_update(key for pair in some for key in pair)
            for key, _ in some:
                if self._spool.has(spool_name(key)):
                    await self._spool.remove(spool_name(key))
            self._journal.write([ArtifactRemoval(key) for key, _ in some])
        return done

    def _note_failure(self, error: StorageError) -> None:
        """Note that objects could not be deleted. A store that takes objects but deletes none is not away."""
        self._failures += 1
        self._again_at = time.monotonic() + wait_after(self._failures, random())
        if error.kind != "denied":
            self._health.note_failure(error)
        elif self._failures == 1:
            _log.error("storage_deletion_denied", objects=len(self._keys), error=str(error))
