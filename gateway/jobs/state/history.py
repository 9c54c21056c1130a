"""The history: every job that ended, by tenant, in the order in which they ended.

Entries are kept encoded; the newest ones in memory up to a limit, all of them in the store.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
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
# Of entries that take too many bytes more go at once: a large one may come to be in place of many small ones.
MAX_DROPPED = 500
# Bytes of summaries that are read before others have their turn.
READ_AT_ONCE = 256 * 1024
# A larger entry is read from the store each time, because it would take the place of hundreds.
MAX_CACHED = 8 * 1024 * 1024
# Of so many bytes in the journal deflate can't make more than that, and so many at a time are read that may be larger.
SURELY_SHORT = MAX_CACHED // 1032
READS_AT_ONCE = 2


@dataclass(slots=True)
class _Ended:
    record: HistoryRecord
    # Read when it is asked for.
    listed: Listed | None = None


class History:
    """All ended jobs.

    Args:
        store: where entries are read that memory does not hold.
        max_items: how many a tenant keeps; the oldest go first (ComfyUI keeps 10,000: execution.py).
        memory: bytes of entries kept in memory.
        max_bytes: the bytes in the journal of those that a tenant keeps; None for any number.
        max_total_bytes: the same of all tenants; past it the oldest of the tenant that has most go.
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
        # Entries that were dropped, by the setting that was the reason; emptied by `take_dropped`.
        self._dropped: Counter[str] = Counter()

    def take_dropped(self) -> Counter[str]:
        """Return how many entries were dropped since the last call, by the setting that was the reason."""
        dropped, self._dropped = self._dropped, Counter()
        return dropped

    def kept_bytes(self, tenant: str | None = None) -> int:
        """Return the bytes that a tenant's entries take in the journal, or those of all (None)."""
        return self._kept_in_all if tenant is None else self._kept[tenant]

    def restore(self, ended: HistoryRecord) -> None:
        """Put back a job of an earlier run; its entry is read when it is asked for."""
        self._ended.setdefault(ended.tenant, OrderedDict())[ended.prompt_id] = _Ended(ended)
        self._count(ended)

    def add(self, record: HistoryRecord) -> list[HistoryRemoval]:
        """Add a job that ended now; what is returned must leave the store, being past the number kept."""
        if not record.kept.bytes:
            size = len(record.packed or record.entry)
            record.kept.bytes = size + len(record.summary) + len(record.node_errors or b"")
        ended = replace(record, entry=b"", packed=b"")
        if self.find(ended.tenant, ended.prompt_id) is not None:
            self.remove(ended.tenant, ended.prompt_id)
        own = self._ended.setdefault(ended.tenant, OrderedDict())
        own[ended.prompt_id] = _Ended(ended)
        self._count(ended)
        if not record.packed:
            self._keep((ended.tenant, ended.prompt_id), record.entry)
        dropped: list[HistoryRemoval] = []
        # A few at a time: one commit must not be long because the number kept was made smaller.
        while len(own) > self._max_items and len(dropped) < DROPPED_AT_ONCE:
            dropped.append(self._drop_oldest(ended.tenant, "history.max_items"))
        # The one that has just come stays, however large it is.
        dropped += self._drop_past_bytes([ended.tenant], MAX_DROPPED - len(dropped), newest=ended.tenant)
        return dropped

    def drop_past_bytes(self, maximum: int) -> list[HistoryRemoval]:
        """Drop the oldest entries past the bytes that may be kept, at most so many: they must leave the store.

        A limit may have been made smaller, and whoever it concerns may end no further job for long.
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
        """Forget one because of a setting."""
        self._dropped[setting] += self.remove(tenant, prompt_id) is not None

    def remove(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        """Forget one; None if the tenant has none of that id."""
        ended = self._ended.get(tenant, OrderedDict()).pop(prompt_id, None)
        if ended is None:
            return None
        self._count(ended.record, -1)
        self._drop_entry((tenant, prompt_id))
        return ended.record

    def find(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        """One of a tenant's ended jobs."""
        own = self._ended.get(tenant)
        ended = own.get(prompt_id) if own is not None else None
        return ended.record if ended is not None else None

    def has(self, tenant: str) -> bool:
        """Return True if a tenant has an ended job."""
        return bool(self._ended.get(tenant))

    def of(self, tenants: Sequence[str] | None) -> Iterator[HistoryRecord]:
        """The ended jobs of some tenants, or of all (None), oldest first within each tenant."""
        for ended in self._of(tenants):
            yield ended.record

    def _of(self, tenants: Sequence[str] | None) -> Iterator[_Ended]:
        for tenant in list(self._ended) if tenants is None else tenants:
            yield from self._ended.get(tenant, {}).values()

    def listed(self, tenants: Sequence[str] | None) -> Iterator[tuple[Listed, HistoryRecord]]:
        """The same, each with what it is filtered and sorted by."""
        for ended in self._of(tenants):
            if ended.listed is None:
                ended.listed = _read_summary(ended)
            yield ended.listed, ended.record

    async def read_summaries(self, tenants: Sequence[str] | None) -> None:
        """Before `listed`, so that it takes no time even where nobody has asked since the start, or not for long."""
        size = 0
        for ended in [ended for ended in self._of(tenants) if ended.listed is None]:
            size += len(ended.record.summary)
            ended.listed = _read_summary(ended)
            if size > READ_AT_ONCE:
                await asyncio.sleep(0)
                size = 0

    def find_any(self, prompt_id: str) -> HistoryRecord | None:
        """An ended job of whichever tenant, for an admin."""
        return next((own[prompt_id].record for own in self._ended.values() if prompt_id in own), None)

    def __len__(self) -> int:
        return sum(len(own) for own in self._ended.values())

    def cached_entry(self, ended: HistoryRecord) -> bytes | None:
        """Return an entry if memory holds it; then it is none of the large ones."""
        key = (ended.tenant, ended.prompt_id)
        cached = self._entries.get(key)
        if cached is not None:
            self._entries.move_to_end(key)
        return cached

    def reading(self, ended: HistoryRecord) -> AbstractAsyncContextManager[object]:
        """Return what is held while an entry is in memory: of those that may be large, few are at a time."""
        is_short = ended.kept.bytes <= SURELY_SHORT or (ended.tenant, ended.prompt_id) in self._entries
        return nullcontext() if is_short else self._large

    async def entry(self, ended: HistoryRecord) -> bytes | None:
        """An entry, from memory or from the store; one that is damaged there is told as a failure that says so.

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


# What /api/jobs calls the outcomes (comfy_execution/jobs.py, JobStatus).
_STATUSES: dict[str, str] = {Outcome.SUCCESS: "completed", Outcome.CANCELLED: "cancelled"}


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
