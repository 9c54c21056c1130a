"""The history: all ended jobs of each tenant, in the order in which they ended.

Entries are kept encoded: all of them in the store, and the last used ones in memory up to a limit.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace

from gateway.comfy import json_codec
from gateway.comfy.history import Outcome, entry_without_run, failure_event
from gateway.comfy.jobs_api import Listed, listed
from gateway.store.protocol import HistoryRecord, HistoryRemoval, Store, StoreDamaged
from gateway.store.row_checks import is_summary
from gateway.telemetry import logs

_log = logs.get("history")

DROPPED_AT_ONCE = 10
# Entries past the limit of bytes are dropped in larger batches, because one large entry may replace many small ones.
MAX_DROPPED = 500
# Bytes of summaries that are parsed in one turn of the event loop.
READ_AT_ONCE = 256 * 1024
# A larger entry is read from the store each time, because in memory it would replace hundreds of others.
MAX_CACHED = 8 * 1024 * 1024
# An entry of at most this many bytes in the journal has at most MAX_CACHED bytes when inflated (deflate's highest
# ratio). Of larger ones at most READS_AT_ONCE are read at a time.
SURELY_SHORT = MAX_CACHED // 1032
READS_AT_ONCE = 2


@dataclass(slots=True)
class _Ended:
    record: HistoryRecord
    # Parsed at the first use.
    listed: Listed | None = None


class History:
    """Index of all ended jobs.

    Args:
        store: source of the entries that memory does not hold.
        max_items: maximum number of a tenant's entries; the oldest go first (ComfyUI keeps 10,000: execution.py).
        memory: maximum bytes of entries in memory.
        max_bytes: maximum bytes of a tenant's entries in the journal; None for no limit.
        max_total_bytes: maximum bytes of all entries; past it the oldest of the tenant with the most bytes go.
    """

    def __init__(
        self,
        store: Store,
        max_items: int,
        memory: int,
        max_bytes: int | None = None,
        max_total_bytes: int | None = None,
    ) -> None:
        self._store = store
        self._max_items = max_items
        self._memory = memory
        self._ended: dict[str, OrderedDict[str, _Ended]] = {}
        self._entries: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._max_bytes = sys.maxsize if max_bytes is None else max_bytes
        self._max_total_bytes = sys.maxsize if max_total_bytes is None else max_total_bytes
        self._kept: Counter[str] = Counter()
        self._kept_in_all = 0
        self._large = asyncio.Semaphore(READS_AT_ONCE)
        self.on_removed: Callable[[str, str], None] = lambda _, __: None
        # Entries that were dropped, by the setting that was the reason; emptied by `take_dropped`.
        self._dropped: Counter[str] = Counter()

    def take_dropped(self) -> Counter[str]:
        """Return how many entries were dropped since the last call, by the setting that was the reason."""
        dropped, self._dropped = self._dropped, Counter()
        return dropped

    def kept_bytes(self, tenant: str | None = None) -> int:
        """Return the bytes in the journal of a tenant's entries, or of all tenants' entries (None)."""
        return self._kept_in_all if tenant is None else self._kept[tenant]

    def restore(self, ended: HistoryRecord) -> None:
        """Put back an ended job of an earlier run. The store is read only when a caller needs the entry."""
        self._ended.setdefault(ended.tenant, OrderedDict())[ended.prompt_id] = _Ended(ended)
        self._count(ended)

    def add(self, record: HistoryRecord) -> list[HistoryRemoval]:
        """Add a job that ended now. Return the removals of dropped entries, which the caller must write."""
        if not record.kept.bytes:
            size = len(record.packed or record.entry)
            record.kept.bytes = size + len(record.summary) + len(record.node_errors or b"")
        ended = replace(record, entry=b"", packed=b"")
        # If the id comes again, the earlier entry is not deleted but replaced.
        self._take(ended.tenant, ended.prompt_id)
        own = self._ended.setdefault(ended.tenant, OrderedDict())
        own[ended.prompt_id] = _Ended(ended)
        self._count(ended)
        if not record.packed:
            self._keep((ended.tenant, ended.prompt_id), record.entry)
        dropped: list[HistoryRemoval] = []
        # Drop a few at a time, because a lower `max_items` must not make one commit long.
        while len(own) > self._max_items and len(dropped) < DROPPED_AT_ONCE:
            dropped.append(self._drop_oldest(ended.tenant, "history.max_items"))
        # Keep the entry that was just added, however large it is.
        dropped += self._drop_past_bytes([ended.tenant], MAX_DROPPED - len(dropped), newest=ended.tenant)
        return dropped

    def drop_past_bytes(self, maximum: int) -> list[HistoryRemoval]:
        """Drop the oldest entries past the limits of bytes, at most `maximum`. Return the removals to write.

        `add` is not enough, because after a limit was lowered a tenant may end no job for long.
        """
        return self._drop_past_bytes(list(self._kept), maximum)

    def _drop_past_bytes(self, tenants: Sequence[str], maximum: int, newest: str | None = None) -> list[HistoryRemoval]:
        dropped: list[HistoryRemoval] = []
        for tenant in tenants:
            while self._kept[tenant] > self._max_bytes and len(self._ended[tenant]) > 1 and len(dropped) < maximum:
                dropped.append(self._drop_oldest(tenant, "history.max_bytes"))
        while self._kept_in_all > self._max_total_bytes and len(dropped) < maximum:
            largest, _ = self._kept.most_common(1)[0]
            if largest == newest and len(self._ended[largest]) == 1:
                break
            dropped.append(self._drop_oldest(largest, "store.retention.max_bytes"))
        return dropped

    def _drop_oldest(self, tenant: str, setting: str) -> HistoryRemoval:
        prompt_id = next(iter(self._ended[tenant]))
        self.expire(tenant, prompt_id, setting)
        return HistoryRemoval(tenant, prompt_id)

    def _count(self, ended: HistoryRecord, sign: int = 1) -> None:
        self._kept[ended.tenant] += sign * ended.kept.bytes
        self._kept_in_all += sign * ended.kept.bytes
        if not self._kept[ended.tenant]:
            del self._kept[ended.tenant]

    def expire(self, tenant: str, prompt_id: str, setting: str) -> None:
        """Forget an ended job, and count it under the setting that was the reason."""
        self._dropped[setting] += self.remove(tenant, prompt_id) is not None

    def remove(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        """Forget and return an ended job; None if the tenant has none with that id."""
        if (taken := self._take(tenant, prompt_id)) is not None:
            self.on_removed(tenant, prompt_id)
        return taken

    def _take(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        ended = self._ended.get(tenant, OrderedDict()).pop(prompt_id, None)
        if ended is None:
            return None
        self._count(ended.record, -1)
        self._drop_entry((tenant, prompt_id))
        return ended.record

    def find(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        """Return one of a tenant's ended jobs."""
        own = self._ended.get(tenant)
        ended = own.get(prompt_id) if own is not None else None
        return ended.record if ended is not None else None

    def has(self, tenant: str) -> bool:
        """Return True if a tenant has an ended job."""
        return bool(self._ended.get(tenant))

    def of(self, tenants: Sequence[str] | None) -> Iterator[HistoryRecord]:
        """Yield the ended jobs of some tenants, or of all (None), oldest first within each tenant."""
        for ended in self._of(tenants):
            yield ended.record

    def _of(self, tenants: Sequence[str] | None) -> Iterator[_Ended]:
        for tenant in list(self._ended) if tenants is None else tenants:
            yield from self._ended.get(tenant, {}).values()

    def listed(self, tenants: Sequence[str] | None) -> Iterator[tuple[Listed, HistoryRecord]]:
        """Return the jobs that have ended by now, each with the fields by which lists are filtered and sorted."""
        return ((_summary(ended), ended.record) for ended in list(self._of(tenants)))

    async def read_summaries(self, tenants: Sequence[str] | None) -> None:
        """Parse summaries that `listed` needs in short steps, so that `listed` does not block the event loop."""
        size = 0
        for ended in [ended for ended in self._of(tenants) if ended.listed is None]:
            size += len(ended.record.summary)
            _summary(ended)
            if size > READ_AT_ONCE:
                await asyncio.sleep(0)
                size = 0

    def find_any(self, prompt_id: str) -> HistoryRecord | None:
        """Return an ended job of any tenant, for an admin."""
        return next((own[prompt_id].record for own in self._ended.values() if prompt_id in own), None)

    def __len__(self) -> int:
        return sum(len(own) for own in self._ended.values())

    def cached_entry(self, ended: HistoryRecord) -> bytes | None:
        """Return an entry if memory holds it. Large entries are never there."""
        key = (ended.tenant, ended.prompt_id)
        cached = self._entries.get(key)
        if cached is not None:
            self._entries.move_to_end(key)
        return cached

    def reading(self, ended: HistoryRecord) -> AbstractAsyncContextManager[object]:
        """Return a context to read an entry in. It bounds the number of large entries in memory at a time."""
        is_short = ended.kept.bytes <= SURELY_SHORT or (ended.tenant, ended.prompt_id) in self._entries
        return nullcontext() if is_short else self._large

    async def entry(self, ended: HistoryRecord) -> bytes | None:
        """Return an entry from memory or from the store. If it is damaged there, return a failure that says so.

        Raises:
            StoreError: the store can't be read at the moment.
        """
        cached = self.cached_entry(ended)
        if cached is not None:
            return cached
        key = (ended.tenant, ended.prompt_id)
        try:
            entry = await self._store.history_entry(*key)
        except StoreDamaged as error:
            _log.error("history_entry_damaged", prompt_id=ended.prompt_id, tenant=ended.tenant, error=str(error))
            entry = _entry_in_place_of(ended, str(error))
        if entry is not None and len(entry) <= MAX_CACHED and self.find(*key) is ended:
            self._keep(key, entry)
        return entry

    def _keep(self, key: tuple[str, str], entry: bytes) -> None:
        self._drop_entry(key)
        self._entries[key] = entry
        self._bytes += len(entry)
        while self._bytes > self._memory and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= len(oldest)

    def _drop_entry(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry)


# Names of the outcomes in /api/jobs (comfy_execution/jobs.py, JobStatus).
_STATUSES: dict[str, str] = {Outcome.SUCCESS: "completed", Outcome.CANCELLED: "cancelled"}


def _summary(ended: _Ended) -> Listed:
    """Return the fields by which an ended job is filtered and sorted. Read its summary only once."""
    if ended.listed is None:
        ended.listed = _read_summary(ended)
    return ended.listed


def _read_summary(ended: _Ended) -> Listed:
    """Return the fields by which an ended job is filtered and sorted. If its summary is damaged, make a new one."""
    if not is_summary(ended.record.summary):
        record = ended.record
        _log.error("history_entry_damaged", prompt_id=record.prompt_id, tenant=record.tenant, error="its summary")
        status = _STATUSES.get(record.outcome, "failed")
        shown = {"id": record.prompt_id, "status": status, "priority": _number(record), "outputs_count": 0}
        ended.record = replace(record, summary=json_codec.dumps(shown))
    return listed(json_codec.loads(ended.record.summary))


def _entry_in_place_of(ended: HistoryRecord, reason: str) -> bytes:
    event = failure_event(ended.prompt_id, reason, "HistoryEntryDamaged")
    item = [_number(ended), ended.prompt_id, {}, {}, []]
    return json_codec.dumps(entry_without_run(item, "execution_error", event))


def _number(ended: HistoryRecord) -> float:
    return int(ended.number) if float(ended.number).is_integer() else ended.number
