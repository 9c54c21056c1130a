"""Comparison of the bucket with the journal: objects without a row, and rows without an object.

An object has no row if the gateway ended between the two, or in a trial of the store. The sweep deletes it, but only if
its key is of this gateway's making, it is a day old, and an earlier sweep of this run found it, too. An object is gone
if somebody else deleted it, such as a lifecycle rule of the bucket. Then its name leads to its backend again, or
nowhere. If many are gone or unknown, the settings or the journal are wrong most likely, so the sweep only says so.
"""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass
from hashlib import blake2b

from gateway.artifacts.model import State, visible_of
from gateway.artifacts.object_store import ObjectStore, StorageError
from gateway.artifacts.probe import is_trial
from gateway.files.index import FileIndex
from gateway.files.values import stored_key
from gateway.store.artifact_records import ArtifactRecord
from gateway.store.protocol import Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.tasks import Tasks, in_turns

_log = logs.get("storage")

DAY = 86_400
# So soon after the start, or after a sweep that found objects without a row, the next sweep comes.
SOON_SECONDS = 3600.0
PAGE = 1_000
# Objects and rows that a sweep compares. It holds 8 bytes of each object, and sorts them.
MAX_OBJECTS = 2_000_000
# Objects without a row, and rows without an object, that a sweep handles. The next sweep handles more.
MAX_FINDINGS = 10_000
# So many are no accident: up to FEW, or up to this share of all.
FEW, SHARE = 20, 0.1
_PARTS = 1024
_OWN_KEY = re.compile(r"(?P<folder>[0-9a-f]{32})/[0-9a-f-]{36}/[0-9a-f]{32}(?:\.[a-z0-9]{1,8})?")
_ROWS_HINT = "are storage.url and storage.endpoint the same as before, and does no rule of the bucket delete objects?"
_OBJECTS_HINT = "is the journal an older copy, or does another gateway use this bucket and path?"


@dataclass(frozen=True, slots=True)
class Swept:
    """Result of a sweep: the number of objects, of deleted objects, and of rows whose object was gone."""

    objects: int = 0
    objects_deleted: int = 0
    rows_dropped: int = 0


class ObjectNames:
    """Keys of objects, eight bytes each, sorted once all are there. Different keys may count as the same.

    They are in parts by their last bits, because sorting two million at once would hold up all else for a second.
    """

    def __init__(self) -> None:
        self._parts = [array("Q") for _ in range(_PARTS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, keys: Iterable[str]) -> None:
        """Add keys."""
        for key in keys:
            hashed = _hash(key)
            self._parts[hashed % _PARTS].append(hashed)
            self._count += 1

    def sorting(self) -> Generator[None, None, None]:
        """Sort the keys, so that they are found, in short steps."""
        for number, part in enumerate(self._parts):
            self._parts[number] = array("Q", sorted(part))
            yield

    def __contains__(self, key: str) -> bool:
        wanted = _hash(key)
        part = self._parts[wanted % _PARTS]
        place = bisect_left(part, wanted)
        return place < len(part) and part[place] == wanted


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def folder_of(key: str) -> str:
    """Return the tenant's folder of a key that a gateway has made; empty for any other key."""
    match = _OWN_KEY.fullmatch(key)
    return match["folder"] if match is not None else ""


def are_too_many(found: int, of: int) -> bool:
    """Return True if so many findings among all can't come from crashes, so that the settings are wrong most likely."""
    return found > max(FEW, of * SHARE)


class BucketSweep:
    """Periodic comparison of the bucket with the journal.

    Args:
        every: seconds between two sweeps, if there is no reason for an earlier one.
    """

    def __init__(self, store: ObjectStore, files: FileIndex, journal: Store, every: float) -> None:
        self._store = store
        self._files = files
        self._journal = journal
        self._every = every
        # Objects that had no row at the sweep before.
        self._doubtful: frozenset[str] = frozenset()
        self._is_first = True
        self._tasks = Tasks("storage")

    def start(self) -> None:
        """Begin to sweep."""
        self._tasks.repeat(self._sweep_again, "sweep", self._rest, at_once=False)

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()

    def _rest(self) -> float:
        return min(self._every, SOON_SECONDS) if self._is_first or self._doubtful else self._every

    async def _sweep_again(self) -> None:
        self._is_first, began = False, time.monotonic()
        try:
            swept = await self.sweep(time.time())
        except (StorageError, StoreError) as error:
            _log.warning("storage_sweep_failed", error=str(error))
            return
        counts = {"objects_deleted": swept.objects_deleted, "rows_dropped": swept.rows_dropped}
        _log.info("storage_swept", objects=swept.objects, **counts, seconds=round(time.monotonic() - began, 1))

    async def sweep(self, now: float) -> Swept:
        """Compare all objects with all rows once. `now` is the time, in seconds since 1970.

        Raises:
            StorageError: the store can't be listed.
            StoreError: the journal can't be read or written.
        """
        folders, rows = await self._folders()
        listed = ObjectNames()
        doubtful: list[str] = []
        async for page in self._store.list():
            if len(listed) + len(page) > MAX_OBJECTS:
                # A part of the objects tells nothing of the others.
                _log.warning("storage_sweep_failed", error=f"the bucket has more than {MAX_OBJECTS} objects")
                return Swept(len(listed))
            listed.add(key for key, _, _ in page)
            aged = (key for key, _, changed in page if changed <= now - DAY)
            old = [key for key in aged if folder_of(key) in folders or is_trial(key)]
            known = await self._journal.known_objects(old)
            doubtful += [key for key in old if key not in known][: MAX_FINDINGS - len(doubtful)]
        await in_turns(listed.sorting())
        deleted = await self._delete(doubtful, len(listed))
        dropped = await self._drop(listed, rows, now)
        return Swept(len(listed), deleted, dropped)

    async def _folders(self) -> tuple[frozenset[str], int]:
        """Return the folders of all tenants that have rows, and the number of rows."""
        folders, count = set[str](), 0
        async for page in self._pages():
            folders.update(folder_of(row.key) for row in page)
            count += len(page)
        return frozenset(folders - {""}), count

    async def _pages(self) -> AsyncIterator[list[ArtifactRecord]]:
        after = ""
        while page := await self._journal.artifact_page(after, PAGE):
            yield page
            after = page[-1].key

    async def _delete(self, doubtful: list[str], objects: int) -> int:
        """Delete the objects that had no row at the earlier sweep either. Return their number."""
        if self._journal.owed:
            # The journal may lack rows of objects that are there.
            return 0
        if are_too_many(len(doubtful), objects):
            _log.error("storage_objects_unknown", objects=len(doubtful), of=objects, hint=_OBJECTS_HINT)
            return 0
        again = [key for key in doubtful if key in self._doubtful]
        self._doubtful = frozenset(doubtful) - frozenset(again)
        count = 0
        for start in range(0, len(again), PAGE):
            some = again[start : start + PAGE]
            # Look again, because a row may have come since.
            known = await self._journal.known_objects(some)
            gone = [key for key in some if key not in known]
            await self._store.delete(gone)
            count += len(gone)
        return count

    async def _drop(self, listed: ObjectNames, rows: int, now: float) -> int:
        """Drop the rows whose object is gone. Return their number."""
        gone: list[ArtifactRecord] = []
        async for page in self._pages():
            for row in page:
                # An object that was written while the bucket was listed need not be in the list.
                is_stored = row.state == State.STORED and row.stored_at < (now - 60) * 1000
                if is_stored and row.key not in listed and len(gone) < MAX_FINDINGS:
                    gone.append(row)
            await asyncio.sleep(0)
        if are_too_many(len(gone), rows):
            _log.error("storage_objects_missing", objects=len(gone), of=rows, hint=_ROWS_HINT)
            return 0
        count = 0
        for row in gone:
            if await self._store.head(row.key) is None and await self._lose(row):
                count += 1
        return count

    async def _lose(self, row: ArtifactRecord) -> bool:
        """Let a name lead to its backend again, because its object is gone. Return False if it means another file."""
        if stored_key(self._files.find(row.tenant, visible_of(row))) != row.key:
            return False
        _log.warning("stored_file_missing", prompt_id=row.prompt_id, tenant=row.tenant, backend=row.backend)
        self._files.drop_stored(row.tenant, visible_of(row))
        # The order to delete the object takes its row away, too.
        await self._journal.write(self._files.take_dropped())
        return True
