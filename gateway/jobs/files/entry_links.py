"""Links to the stored files of ended jobs, beside their outputs: the key ``gateway_files`` (``storage.links``).

Links are signed when somebody reads an entry. Neither the journal nor the entries in memory hold them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.artifacts.links import Link, Links
from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef
from gateway.comfy.history_files import made_files
from gateway.files.index import FileIndex, Holder, Stored
from gateway.store.protocol import HistoryRecord

FILES = b'"gateway_files"'
# Files of one job that are linked. A video as single pictures has some thousands.
MAX_LINKED = 1_000
# Links in one answer, because a tenant may have a million files, and each link takes time to sign.
MAX_IN_ANSWER = 10_000
# A longer entry is parsed in a process apart, unless it has few values.
MAX_AT_ONCE = 32 * 1024
# Files of entries that are remembered, so that an entry is not parsed for each reader.
MAX_REMEMBERED = 100_000
# Work after which others have their turn: bytes that are parsed, and as much for each file.
WORK_AT_ONCE, WORK_PER_FILE = 128 * 1024, 256

Refs = tuple[FileRef, ...]
# An ended job, and its entry.
Ended = tuple[HistoryRecord, bytes]


@dataclass(slots=True)
class Answer:
    """An answer to one reader: the gateway's own links in it begin with `prefix`, and `left` more links may follow."""

    prefix: str = ""
    left: int = field(default_factory=lambda: MAX_IN_ANSWER)


class EntryLinks:
    """Links to the files of history entries.

    Args:
        files_of: returns the files of a tenant's long entry; None if it can't be read now.
    """

    def __init__(
        self, files: FileIndex, links: Links, files_of: Callable[[str, bytes, int], Awaitable[Refs | None]]
    ) -> None:
        self._files = files
        self._links = links
        self._files_of = files_of
        # The files of entries, by tenant and prompt_id, with the upstream id of the entry's run.
        self._known: OrderedDict[tuple[str, str], tuple[str, Refs]] = OrderedDict()
        self._remembered = 0

    def find(self, tenant: str, ref: FileRef) -> Stored | None:
        """Return a tenant's file, if object storage has it."""
        match self._files.find(tenant, ref):
            case Holder(stored=Stored() as stored) | (Stored() as stored):
                return stored
        return None

    async def links_to(self, tenant: str, refs: Sequence[FileRef]) -> list[Link | None]:
        """Return a link to each of a tenant's files; None for a file that has none."""
        found = [self.find(tenant, ref) for ref in refs]
        links = iter(await self._links.of([stored for stored in found if stored is not None]))
        return [next(links) if stored is not None else None for stored in found]

    async def members(self, entries: Sequence[Ended], answer: Answer) -> list[bytes]:
        """Return for each ended job the bytes that stand before the last brace of its JSON.

        They are empty for a job whose entry can't be read now. Files past the links of an answer have none.
        """
        told: list[bytes] = []
        group, work = list[tuple[str, Refs | None]](), 0
        for ended, entry in entries:
            known = self._remembered_of(ended)
            refs = await self._read(ended, entry) if known is None else known
            group.append((ended.tenant, refs))
            work += len(refs or ()) * WORK_PER_FILE + (len(entry) if known is None else 0)
            if work > WORK_AT_ONCE:
                told += await self._told(group, answer)
                group, work = [], 0
                await asyncio.sleep(0)
        return told + await self._told(group, answer)

    async def _told(self, group: Sequence[tuple[str, Refs | None]], answer: Answer) -> list[bytes]:
        """Return the bytes about the files of a few entries, each of which is a tenant and the entry's files."""
        found = [
            [(ref, stored) for ref in refs or () if (stored := self.find(tenant, ref)) is not None]
            for tenant, refs in group
        ]
        wanted = [stored for each in found for _, stored in each][: answer.left]
        answer.left -= len(wanted)
        links = iter(await self._links.of(wanted))
        told = [[self._shown(ref, stored, next(links, None), answer.prefix) for ref, stored in each] for each in found]
        return [
            b"" if refs is None else b",%b:%b" % (FILES, json_codec.dumps(each))
            for (_, refs), each in zip(group, told, strict=True)
        ]

    def _shown(self, ref: FileRef, stored: Stored, link: Link | None, prefix: str) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "filename": ref.filename,
            "subfolder": ref.subfolder,
            "type": ref.kind,
            "size": stored.size,
            "blake3": stored.digest,
            "url": None if link is None else link.under(prefix),
            "expires_at": None if link is None else link.expires_at,
        }
        return {**shown, "stripped": True} if self._links.is_stripped else shown

    def _remembered_of(self, ended: HistoryRecord) -> Refs | None:
        """Return the files that a job made, if its entry was read before."""
        key = ended.tenant, ended.prompt_id
        known = self._known.get(key)
        if known is None or known[0] != ended.upstream_id:
            return None
        self._known.move_to_end(key)
        return known[1]

    async def _read(self, ended: HistoryRecord, entry: bytes) -> Refs | None:
        """Return the files that a job made; None if its entry can't be read now."""
        if len(entry) <= MAX_AT_ONCE:
            refs: Refs | None = made_files(json_codec.loads(entry).get("outputs"), MAX_LINKED)
        else:
            refs = await self._files_of(ended.tenant, entry, MAX_LINKED)
        if refs is not None:
            self._remember((ended.tenant, ended.prompt_id), ended.upstream_id, refs)
        return refs

    def _remember(self, key: tuple[str, str], upstream_id: str, refs: Refs) -> None:
        before = self._known.pop(key, None)
        self._remembered -= 0 if before is None else len(before[1]) + 1
        self._known[key] = upstream_id, refs
        self._remembered += len(refs) + 1
        while self._remembered > MAX_REMEMBERED:
            _, (_, oldest) = self._known.popitem(last=False)
            self._remembered -= len(oldest) + 1
