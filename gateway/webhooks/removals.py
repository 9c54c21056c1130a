"""Deletion of endpoints: first the mark that one is being deleted, then its deliveries in batches, its row last.

From the mark on nobody sees the endpoint, and its URL and secrets are gone. If the gateway ends midway, the next start
finds the mark and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.store.protocol import Change, Store, StoreError
from gateway.store.webhook_records import EndpointRemoval
from gateway.telemetry.tasks import Tasks
from gateway.tenants.stored_keys import ANSWER_WITHIN, durable
from gateway.webhooks.model import Endpoint, EndpointState, Reason
from gateway.webhooks.outbox import BATCH, Outbox
from gateway.webhooks.records import endpoint_record

# Seconds after which a batch is written again that the journal refused, because too much waits for the disk.
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Removal:
    tenant: str
    marked: asyncio.Future[None]
    work: asyncio.Task[None]


class Removals:
    """Endpoints that are being deleted."""

    def __init__(self, store: Store, outbox: Outbox, tasks: Tasks) -> None:
        self._store = store
        self._outbox = outbox
        self._tasks = tasks
        self._under_way: dict[str, _Removal] = {}

    def count(self, tenant: str) -> int:
        """Return the number of a tenant's endpoints that are being deleted."""
        return sum(each.tenant == tenant for each in self._under_way.values())

    def has(self, tenant: str | None, endpoint_id: str) -> bool:
        """Return True while an endpoint of a tenant, or of any (None), is being deleted."""
        removal = self._under_way.get(endpoint_id)
        return removal is not None and tenant in (None, removal.tenant)

    def start(self, endpoint: Endpoint) -> None:
        """Begin to delete an endpoint."""
        self._outbox.remove_endpoint(endpoint)
        marked = self._store.write([endpoint_record(deleted(endpoint))])
        work = self._tasks.start(self._remove(endpoint), f"delete {endpoint.id}")
        self._under_way[endpoint.id] = _Removal(endpoint.tenant, marked, work)
        work.add_done_callback(lambda _: self._under_way.pop(endpoint.id))

    async def wait(self, endpoint_id: str) -> None:
        """Wait until the mark is durable, so that no crash brings the endpoint back, and for the rest if it is short.

        Raises:
            StoreError: the disk has not taken the mark.
        """
        removal = self._under_way.get(endpoint_id)
        if removal is not None:
            await durable(removal.marked, f"the endpoint {endpoint_id} is deleted")
            await asyncio.wait([removal.work], timeout=ANSWER_WITHIN)

    async def _remove(self, endpoint: Endpoint) -> None:
        ids = self._outbox.ids_of(endpoint.tenant)
        for start in range(0, len(ids), BATCH):
            if changes := self._outbox.forget_deliveries(endpoint.id, ids[start : start + BATCH]):
                await self._write(changes)
            else:
                await asyncio.sleep(0)
        await self._write([EndpointRemoval(endpoint.id)])

    async def _write(self, changes: Sequence[Change]) -> None:
        is_written = False
        while not is_written:
            try:
                await self._store.write(changes)
                is_written = True
            except StoreError:
                await asyncio.sleep(RETRY_SECONDS)


def deleted(endpoint: Endpoint) -> Endpoint:
    """Return the mark of an endpoint that is being deleted: it tells neither where it led, nor how it signed."""
    state, reason = EndpointState.DISABLED, Reason.DELETED
    return replace(endpoint, url="", secrets=(), description="", state=state, reason=reason)
