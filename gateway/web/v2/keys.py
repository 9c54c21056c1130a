"""Idempotency-Keys of the Comfy API v2: each is used once in a day.

A key is taken when a submission is really made. It is free again if that certainly made no job, and stays taken if
nobody knows, also over a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
from itertools import islice

from gateway.store.protocol import Store
from gateway.store.v2_records import V2KeyRecord, V2KeyRemoval

LIFE_MS = 86_400_000
# Keys of one tenant that are remembered, the newest.
MAX_KEYS = 50_000
# Keys that are forgotten at a time.
BATCH = 500


class IdempotencyKeys:
    """The keys that were used, by tenant. Times are milliseconds since 1970."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken: dict[str, dict[str, int]] = {}

    async def restore(self) -> None:
        """Read the keys of earlier runs.

        Raises:
            StoreError: the journal can't be read.
        """
        for record in await self._store.v2_keys():
            self._taken.setdefault(record.tenant, {})[record.digest] = record.taken_at

    def is_taken(self, tenant: str, key: str) -> bool:
        """Return True if a key is taken."""
        return _digest(key) in self._taken.get(tenant, {})

    def take(self, tenant: str, key: str, now: int) -> bool:
        """Take a key, and write this to the journal. Return False if the key is taken already."""
        own, digest = self._taken.setdefault(tenant, {}), _digest(key)
        # The sweep alone ends a key's day, because one reading of the clock may be wrong.
        if digest in own:
            return False
        own[digest] = now
        # The job's own record is behind it in the queue of the journal.
        record = V2KeyRecord(tenant, digest, now)
        self._store.try_write([record]).add_done_callback(lambda done: self._written(done, record))
        while len(own) > MAX_KEYS:
            self._drop(tenant, [next(iter(own))])
        return True

    def _written(self, done: asyncio.Future[None], record: V2KeyRecord) -> None:
        is_refused = not done.cancelled() and done.exception() is not None
        if is_refused and record.digest in self._taken.get(record.tenant, {}):
            # The disk may take the job's record by now, so this one must not be missing.
            self._store.write([record])

    def free(self, tenant: str, key: str) -> None:
        """Free a key, because its submission certainly made no job."""
        self._drop(tenant, [_digest(key)])

    def sweep(self, now: int) -> None:
        """Forget keys whose day is over, a batch of each tenant."""
        for tenant, own in list(self._taken.items()):
            # In the order in which they were taken.
            old = [digest for digest, taken_at in islice(own.items(), BATCH) if now - taken_at >= LIFE_MS]
            if old:
                self._drop(tenant, old)

    def _drop(self, tenant: str, digests: list[str]) -> None:
        own = self._taken.get(tenant, {})
        gone = [digest for digest in digests if own.pop(digest, None) is not None]
        if not own:
            self._taken.pop(tenant, None)
        if gone:
            self._store.write([V2KeyRemoval(tenant, digest) for digest in gone])


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
