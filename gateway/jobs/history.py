"""The history: every job that ended, by tenant, in the order in which they ended.

Entries are kept encoded; the newest ones in memory up to a limit, all of them in the store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gateway.comfy import wire
from gateway.comfy.jobs import Listed, listed
from gateway.store.protocol import HistoryRecord, HistoryRemoval, Store

DROPPED_AT_ONCE = 10
# Bytes of summaries that are read before others have their turn.
READ_AT_ONCE = 256 * 1024


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
    """

    def __init__(self, store: Store, max_items: int, memory: int) -> None:
        self._store = store
        self._max_items = max_items
        self._memory = memory
        self._ended: dict[str, OrderedDict[str, _Ended]] = {}
        self._entries: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0

    def restore(self, ended: HistoryRecord) -> None:
        """Put back a job of an earlier run; its entry is read when it is asked for."""
        self._ended.setdefault(ended.tenant, OrderedDict())[ended.prompt_id] = _Ended(ended)

    def add(self, record: HistoryRecord) -> list[HistoryRemoval]:
        """Add a job that ended now; what is returned must leave the store, being past the number kept."""
        ended = replace(record, entry=b"")
        own = self._ended.setdefault(ended.tenant, OrderedDict())
        own[ended.prompt_id] = _Ended(ended)
        self._keep((ended.tenant, ended.prompt_id), record.entry)
        dropped: list[HistoryRemoval] = []
        # A few at a time: one commit must not be long because the number kept was made smaller.
        while len(own) > self._max_items and len(dropped) < DROPPED_AT_ONCE:
            prompt_id, _ = own.popitem(last=False)
            self._drop_entry((ended.tenant, prompt_id))
            dropped.append(HistoryRemoval(ended.tenant, prompt_id))
        return dropped

    def remove(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        """Forget one; None if the tenant has none of that id."""
        ended = self._ended.get(tenant, OrderedDict()).pop(prompt_id, None)
        if ended is None:
            return None
        self._drop_entry((tenant, prompt_id))
        return ended.record

    def find(self, tenant: str, prompt_id: str) -> HistoryRecord | None:
        """One of a tenant's ended jobs."""
        own = self._ended.get(tenant)
        ended = own.get(prompt_id) if own is not None else None
        return ended.record if ended is not None else None

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
                ended.listed = listed(wire.loads(ended.record.summary))
            yield ended.listed, ended.record

    async def read_summaries(self, tenants: Sequence[str] | None) -> None:
        """Before `listed`, so that it takes no time even where nobody has asked since the start, or not for long."""
        size = 0
        for ended in [ended for ended in self._of(tenants) if ended.listed is None]:
            ended.listed = listed(wire.loads(ended.record.summary))
            size += len(ended.record.summary)
            if size > READ_AT_ONCE:
                await asyncio.sleep(0)
                size = 0

    def find_any(self, prompt_id: str) -> HistoryRecord | None:
        """An ended job of whichever tenant, for an admin."""
        return next((own[prompt_id].record for own in self._ended.values() if prompt_id in own), None)

    def __len__(self) -> int:
        return sum(len(own) for own in self._ended.values())

    def cached_entry(self, tenant: str, prompt_id: str) -> bytes | None:
        """An entry if memory holds it."""
        return self._entries.get((tenant, prompt_id))

    async def entry(self, ended: HistoryRecord) -> bytes | None:
        """An entry, from memory or from the store."""
        key = (ended.tenant, ended.prompt_id)
        cached = self._entries.get(key)
        if cached is not None:
            self._entries.move_to_end(key)
            return cached
        entry = await self._store.history_entry(*key)
        if entry is not None and self.find(*key) is ended:
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
