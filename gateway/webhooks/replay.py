"""Replay: send events again, under their ids.

A delivery is read, queued and handed to the journal in one turn of the loop, so an attempt that ends meanwhile is
before the replay or after it, in memory and in the journal alike, and none undoes the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gateway.store.protocol import Store, StoreError
from gateway.tenants.stored_keys import durable
from gateway.webhooks.delivery import Deliveries
from gateway.webhooks.model import Delivery, DeliveryState, Endpoint, EventType, WebhookRefused
from gateway.webhooks.outbox import BATCH, Outbox, again
from gateway.webhooks.queues import Key

# Events that are looked at in one turn of the loop.
_LOOKED = 1_000


class Replays:
    """Replays of one event, and of what an endpoint takes of a time."""

    def __init__(self, store: Store, outbox: Outbox, deliveries: Deliveries) -> None:
        self._store = store
        self._outbox = outbox
        self._deliveries = deliveries
        # Tenants whose events of a time are being replayed, and the new deliveries that such replays will make.
        self._replaying: set[str] = set()
        self._reserved = 0

    async def replay_event(self, event_id: str, endpoint: Endpoint | None) -> int:
        """Send an event again to the receivers that it went to, or to one endpoint. Return the number of deliveries.

        Raises:
            WebhookRefused: no receiver of it is enabled, or the new delivery does not fit.
            StoreError: the journal does not have it yet.
        """
        known = [each.key for each in self._outbox.deliveries_of(event_id)]
        keys = known if endpoint is None else [(event_id, endpoint.id)]
        if not any(self._is_sent(each) for each in map(self._now, keys) if each is not None):
            raise WebhookRefused("every endpoint of this event is disabled; enable one, and replay the event then")
        with self._room_for(sum(self._outbox.delivery(key) is None for key in keys)):
            return await self._replay(keys)

    async def replay_range(self, endpoint: Endpoint, since: float, until: float) -> int:
        """Send all events of a time to an endpoint again that it takes. Return the number of deliveries.

        Raises:
            WebhookRefused: the endpoint is disabled, another such replay of the tenant is under way, or the new
                deliveries do not fit.
            StoreError: the journal does not have all of them yet.
        """
        if not endpoint.is_enabled:
            raise WebhookRefused("the endpoint is disabled; enable it first")
        if endpoint.tenant in self._replaying:
            # Each may write and hold a delivery for every event, so many at a time would hold up the journal for all.
            raise WebhookRefused("a replay of this tenant's events is under way; ask again when it has its answer")
        self._replaying.add(endpoint.tenant)
        try:
            keys = await self._keys_of(endpoint, since, until)
            count = 0
            with self._room_for(sum(self._outbox.delivery(key) is None for key in keys)):
                for start in range(0, len(keys), BATCH):
                    # In batches, because a long commit delays the prompts that share it.
                    count += await self._replay(keys[start : start + BATCH])
            return count
        finally:
            self._replaying.discard(endpoint.tenant)

    async def _keys_of(self, endpoint: Endpoint, since: float, until: float) -> list[Key]:
        ids, keys = self._outbox.ids_of(endpoint.tenant), list[Key]()
        for start in range(0, len(ids), _LOOKED):
            for event_id in ids[start : start + _LOOKED]:
                event = self._outbox.event(event_id)
                if event is None or event.type is EventType.TEST or not endpoint.wants(event.type):
                    continue
                if since <= event.happened_at <= until:
                    keys.append((event_id, endpoint.id))
            await asyncio.sleep(0)
        return keys

    @contextmanager
    def _room_for(self, new: int) -> Iterator[None]:
        """Hold room for new deliveries.

        Raises:
            WebhookRefused: there is not enough, and other tenants' events would have to go.
        """
        room = max(self._outbox.room - self._reserved, 0)
        if new > room:
            raise WebhookRefused(
                f"the replay makes {new} new deliveries, and the gateway has room for {room}; replay a shorter time, "
                "or wait until older events are kept no longer (webhooks.keep)"
            )
        self._reserved += new
        try:
            yield
        finally:
            self._reserved -= new

    async def _replay(self, keys: Iterable[Key]) -> int:
        if self._store.trouble:
            raise StoreError(self._store.trouble)
        moment, changed, count = time.time(), list[Delivery](), 0
        for key in keys:
            # The event may have been dropped, and the endpoint disabled or deleted, since the replay began.
            current = self._now(key)
            if current is None or not self._is_sent(current):
                continue
            count += 1
            replayed = again(current, moment)
            if replayed is not current:
                changed.append(replayed)
        if changed:
            await durable(self._store.write(self._deliveries.put(changed)), "the events are replayed")
        return count

    def _now(self, key: Key) -> Delivery | None:
        """Return a delivery as it is at present, a new one if there is none; None if its event is gone."""
        event = self._outbox.event(key[0])
        if event is None:
            return None
        return self._outbox.delivery(key) or Delivery(event.id, key[1], event.tenant, DeliveryState.DEAD)

    def _is_sent(self, delivery: Delivery) -> bool:
        endpoint = self._outbox.endpoint(delivery.endpoint_id)
        return delivery.target is not None or (endpoint is not None and endpoint.is_enabled)
