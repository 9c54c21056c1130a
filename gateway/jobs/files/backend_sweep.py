"""The sweep of a backend's folders: which of the files there may be deleted. The rule is in `sweepable.py`.

A ComfyUI has no route that deletes a file. So ``comfyui-gateway sweep`` runs beside it, lists its folders, and asks the
gateway.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.artifacts.service import Artifacts
from gateway.files.index import FileIndex, Holder
from gateway.files.placements import TRUST_SECONDS, Placements
from gateway.files.uploads import Uploads
from gateway.jobs.files.sweepable import Claim, Delays, Facts, Placed, Seen, Verdict, judge
from gateway.jobs.state.ledger import Ledger
from gateway.settings.storage import StorageSettings
from gateway.store.protocol import Store, StoreError

# Files that are judged in one turn of the event loop.
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class BackendSweep:
    """Verdicts about the files in backends' folders.

    Args:
        artifacts: the copies of files in object storage; None if `storage` is off.
        journal: has the rows of the copies.
        started_at: the start of the gateway, in seconds of the monotonic clock.
    """

    files: FileIndex
    placements: Placements
    uploads: Uploads
    ledger: Ledger
    artifacts: Artifacts | None
    settings: StorageSettings
    journal: Store
    started_at: float

    async def judge(self, backend: str, seen: Sequence[Seen], *, deletes: bool) -> list[Verdict]:
        """Return the verdict about each file of a backend.

        Args:
            deletes: True if the caller will delete the deletable files now.
        """
        read_since = self._read_since(backend)
        verdicts: list[Verdict] = []
        for start in range(0, len(seen), AT_ONCE):
            if start:
                await asyncio.sleep(0)
            verdicts += [self._judge(backend, each, read_since) for each in seen[start : start + AT_ONCE]]
        for number, each in enumerate(seen):
            if verdicts[number] is Verdict.UNUSED and not await self._is_kept(backend, each):
                verdicts[number] = Verdict.NOT_STORED
        if deletes:
            self._leave(backend, seen, verdicts)
        if Verdict.STORED in verdicts and not await self._are_journalled():
            return [Verdict.NOT_STORED if each is Verdict.STORED else each for each in verdicts]
        return verdicts

    async def _are_journalled(self) -> bool:
        """Return True if the journal has the rows of all copies that are made.

        A copy without its row is unknown after a crash, so its file must not be deleted yet.
        """
        try:
            await self.journal.try_write([])
        except StoreError:
            return False
        return True

    def _leave(self, backend: str, seen: Sequence[Seen], verdicts: list[Verdict]) -> None:
        """Let no prompt name the deletable files there from now on, because they may go at any moment.

        Judge them once more before that, without an await between, because a prompt may have named one meanwhile.
        """
        now, read_since = time.monotonic(), self._read_since(backend)
        for number, each in enumerate(seen):
            if verdicts[number].is_deletable:
                verdicts[number] = self._judge(backend, each, read_since)
                if verdicts[number].is_deletable:
                    self.placements.leave(backend, each.ref, now)

    def _read_since(self, backend: str) -> float:
        """Return a time. Jobs that are on a backend now read no file that was last used there before that time."""
        sent_at = [job.assignment.made_at for job in self.ledger.jobs_on(backend) if job.assignment is not None]
        # A file that is trusted to be there is used without a note.
        return min(sent_at, default=math.inf) - TRUST_SECONDS

    async def _is_kept(self, backend: str, seen: Seen) -> bool:
        """Return True if an input can be put on its backend again, or if nobody can name it any more."""
        digest = self.placements.digest_at(backend, seen.ref)
        if digest is None or not self.uploads.has(digest):
            return True
        try:
            return await self.uploads.blobs.has(digest)
        except StoreError:
            return False

    def _judge(self, backend: str, seen: Seen, read_since: float) -> Verdict:
        ref = seen.ref
        holders = self.files.holders(backend, ref)
        is_named = self.ledger.named.may_open(ref) or any(
            self.ledger.named.has(tenant, visible) for tenant, visible, _ in holders
        )
        facts = Facts(
            [self._claim(holder) for _, _, holder in holders],
            self.files.deleted.find(backend, ref),
            self.files.forgotten.find(backend, ref),
            self._placed(backend, seen, read_since),
            is_named,
        )
        delays = Delays(self.settings.forgotten_after, self.settings.unused_after)
        return judge(seen, facts, int(time.time() * 1000), delays)

    def _claim(self, holder: Holder) -> Claim:
        # A file whose bytes wait on the gateway's disk is not safe there.
        artifacts, stored = self.artifacts, holder.stored
        return Claim(
            holder.etag, is_stored=artifacts is not None and stored is not None and artifacts.is_in_store(stored)
        )

    def _placed(self, backend: str, seen: Seen, read_since: float) -> Placed | None:
        found = self.placements.placed(backend, seen.ref)
        if found is None:
            return None
        etag, used_at = found
        # If a file was not used since the start, count from the start, because an earlier run may have used it.
        used_at = max(used_at, self.started_at)
        return Placed(etag.removeprefix("W/"), time.monotonic() - used_at, is_read=used_at >= read_since)
