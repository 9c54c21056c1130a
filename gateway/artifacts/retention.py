"""Retention of stored files, by age and by bytes a tenant. The decisions are pure.

A file that is past its time is deleted for good: in the bucket, and on its backend, where nobody finds it again and a
sweep may delete it.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from gateway.comfy.file_refs import FileRef
from gateway.files.expiry import Expiry
from gateway.files.index import FileIndex, Holder, Stored, Upload
from gateway.files.values import stored_key, stored_of_place
from gateway.settings.storage import StorageRetention
from gateway.store.protocol import Change, FileRemoval, Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks, in_turns

_log = logs.get("storage")

TURN_SECONDS = 600.0
# Files that are deleted in one commit, and files that are looked at in one step.
BATCH = 100
AT_ONCE = 1_000
# Files whose age a turn confirms. The next turn looks at more.
MAX_EXPIRING = 50_000
BY_AGE, BY_BYTES = "storage.retention.max_age", "storage.retention.max_bytes"
_AGE = attrgetter("stored_at", "key")


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A stored file: its tenant, the tenant's name for it, and its copy. `stored_at` is milliseconds since 1970."""

    tenant: str
    visible: FileRef
    key: str
    size: int
    stored_at: int


def past_bytes(files: Iterable[KeptFile], maximum: int) -> Generator[None, None, list[KeptFile]]:
    """Return the oldest files of each tenant that has more than `maximum` bytes, as many as are past it.

    Find them in short steps, because a tenant may have a million files.
    """
    sizes, owned = Counter[str](), defaultdict[str, list[KeptFile]](list)
    for count, each in enumerate(files, start=1):
        sizes[each.tenant] += each.size
        owned[each.tenant].append(each)
        if count % AT_ONCE == 0:
            yield
    excess: list[KeptFile] = []
    for tenant in sorted(tenant for tenant, size in sizes.items() if size > maximum):
        size, runs = sizes[tenant], list[list[KeptFile]]()
        for start in range(0, len(owned[tenant]), AT_ONCE):
            runs.append(sorted(owned[tenant][start : start + AT_ONCE], key=_AGE))
            yield
        for count, each in enumerate(heapq.merge(*runs, key=_AGE)):
            if size <= maximum:
                break
            excess.append(each)
            size -= each.size
            if count % AT_ONCE == 0:
                yield
    return excess


def too_old(files: Iterable[KeptFile], oldest: float) -> Generator[None, None, dict[str, int]]:
    """Return the keys and times of files that were stored before a time, in milliseconds since 1970, in short steps.

    They are `MAX_EXPIRING` at most, and the same ones at the next turn.
    """
    found: dict[str, int] = {}
    for count, each in enumerate(files, start=1):
        if each.stored_at < oldest and len(found) < MAX_EXPIRING:
            found[each.key] = each.stored_at
        if count % AT_ONCE == 0:
            yield
    return found


class ArtifactRetention:
    """Retention of all stored files.

    Args:
        is_named: returns True if an open job of a tenant names a file. Such a file is kept meanwhile.
    """

    def __init__(
        self,
        settings: StorageRetention,
        files: FileIndex,
        journal: Store,
        is_named: Callable[[str, FileRef], bool],
    ) -> None:
        self._settings = settings
        self._files = files
        self._journal = journal
        self._is_named = is_named
        self._expiry = None if settings.max_age is None else Expiry(settings.max_age)
        self._tasks = Tasks("storage")

    def start(self) -> None:
        """Look at once, and then periodically. Without limits do nothing."""
        if self._expiry is not None or self._settings.max_bytes is not None:
            self._tasks.repeat(self._turn_again, "retention", min(TURN_SECONDS, (self._settings.max_age or 1e9) / 4))

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    async def _turn_again(self) -> None:
        try:
            await self.turn(time.time(), time.monotonic())
        except StoreError as error:
            _log.error("storage_retention_failed", error=str(error))

    async def turn(self, wall: float, monotonic: float) -> None:
        """Delete the files that are too old, then those past the bytes of their tenant.

        Args:
            wall: the time, in seconds since 1970.
            monotonic: the seconds of a clock that can't be set.

        Raises:
            StoreError: the journal can't be written.
        """
        if self._expiry is not None and self._settings.max_age is not None:
            kept = await in_turns(self._kept())
            old = await in_turns(too_old(kept, (wall - self._settings.max_age) * 1000))
            # An hour must confirm it, because the wall clock may be wrong for a while.
            expired = frozenset(self._expiry.expired(old, wall, monotonic))
            await self._delete([each for each in kept if each.key in expired] if expired else (), BY_AGE)
        if self._settings.max_bytes is not None:
            kept = await in_turns(self._kept())
            await self._delete(await in_turns(past_bytes(kept, self._settings.max_bytes)), BY_BYTES)

    def _kept(self) -> Generator[None, None, list[KeptFile]]:
        """Return all stored files, in short steps."""
        kept: list[KeptFile] = []
        for count, (tenant, visible) in enumerate(self._files.names(), start=1):
            if (stored := stored_of_place(self._files.find(tenant, visible))) is not None:
                kept.append(KeptFile(tenant, visible, stored.key, stored.size, stored.stored_at))
            if count % AT_ONCE == 0:
                yield
        return kept

    async def _delete(self, files: Sequence[KeptFile], setting: str) -> None:
        count = 0
        for start in range(0, len(files), BATCH):
            changes: list[Change] = []
            for each in files[start : start + BATCH]:
                # Look again, because there was an await since.
                is_it = stored_key(self._files.find(each.tenant, each.visible)) == each.key
                if is_it and not self._is_named(each.tenant, each.visible):
                    changes += delete_file(self._files, each.tenant, each.visible)
                    count += 1
            await self._journal.write(changes)
        if count:
            _log.info("storage_expired", files=count, setting=setting)


def delete_file(files: FileIndex, tenant: str, visible: FileRef) -> list[Change]:
    """Delete a tenant's file that a job made, wherever it is; of an upload its copy alone. Return what to write."""
    changes: list[Change] = []
    match files.find(tenant, visible):
        case Holder() as holder:
            changes.append(FileRemoval(tenant, visible.kind, visible.subfolder, visible.filename))
            changes += files.delete(tenant, holder)
        case Stored() | Upload():
            files.drop_stored(tenant, visible)
    return [*changes, *files.take_dropped()]
