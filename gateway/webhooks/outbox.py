"""The outbox: all endpoints, events and deliveries that the journal has, without the events' payloads.

It decides, and writes nothing: methods return changes to persist. Times are passed in. What it holds is bounded: each
tenant has a maximum of events, and all of them have one together, in number, in bytes and in deliveries. The oldest go
first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from gateway.store.webhook_records import DeliveryRemoval, EndpointRecord, EventPayload, EventRemoval
from gateway.webhooks.model import (
    OF_PROMPT,
    Attempt,
    Delivery,
    DeliveryState,
    Endpoint,
    Event,
    EventType,
    Listed,
    Page,
    Reason,
    Target,
)
from gateway.webhooks.orders import ByAge, Tally
from gateway.webhooks.payload_cache import PayloadCache
from gateway.webhooks.queues import Key, Queues, Recipient
from gateway.webhooks.records import endpoint_record
from gateway.webhooks.schedule import MAX_WAIT, breaker_after

# Maximum events of all tenants together, and bytes of their payloads in the journal.
MAX_EVENTS_TOTAL = 100_000
MAX_BYTES_TOTAL = 1024**3
# Maximum deliveries of all tenants. Each takes 1 to 2 KiB of memory with its attempts, and an event may have eleven.
MAX_DELIVERIES_TOTAL = 200_000
# Changes in one write, because a long commit delays the prompts that share it. So many events are dropped in one step.
BATCH = 100
# Events that one page looks at, because a filter may leave out most.
MAX_LOOKED = 10_000
_EMPTY: dict[str, Delivery] = {}


@dataclass(frozen=True, slots=True)
class Now:
    """A moment: seconds since 1970, and seconds of the monotonic clock."""

    wall: float
    monotonic: float


class Outbox:
    """Index of endpoints, events and deliveries.

    Args:
        queues: queues of the deliveries that are pending.
        max_events: maximum number of a tenant's events.
        keep: seconds for which an event is kept.
        dropped: called with each delivery that is dropped while it is pending.
    """

    def __init__(
        self,
        queues: Queues,
        max_events: int,
        keep: float,
        dropped: Callable[[Delivery], None] = lambda _: None,
        *,
        max_total: int = MAX_EVENTS_TOTAL,
        max_bytes: int = MAX_BYTES_TOTAL,
        max_deliveries: int = MAX_DELIVERIES_TOTAL,
    ) -> None:
        self.queues = queues
        self.keep = keep
        self._max_events, self._max_total, self._max_bytes = max_events, max_total, max_bytes
        self._max_deliveries = max_deliveries
        self._dropped = dropped
        self._endpoints: dict[str, Endpoint] = {}
        self._of_tenant: dict[str, dict[str, Endpoint]] = {}
        self._events: dict[str, Event] = {}
        self._events_of: dict[str, OrderedDict[str, None]] = {}
        self._by_age = ByAge(self._events.__contains__)
        self._deliveries: dict[str, dict[str, Delivery]] = {}
        # Events and deliveries of each tenant.
        self._counts, self._held = Tally(), Tally()
        self._states: Counter[DeliveryState] = Counter()
        self._bytes = 0
        self._payloads = PayloadCache()

    # -- endpoints -----------------------------------------------------------------------------------------------

    @property
    def has_endpoints(self) -> bool:
        """Return True if there is an endpoint, of any tenant."""
        return bool(self._endpoints)

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint."""
        return self._endpoints.get(endpoint_id)

    def endpoints(self, tenant: str | None = None) -> list[Endpoint]:
        """Return the endpoints of a tenant, or of all (None), in the order in which they were made."""
        return list((self._endpoints if tenant is None else self._of_tenant.get(tenant, {})).values())

    def put_endpoint(self, endpoint: Endpoint) -> EndpointRecord:
        """Add or replace an endpoint."""
        self._endpoints[endpoint.id] = endpoint
        self._of_tenant.setdefault(endpoint.tenant, {})[endpoint.id] = endpoint
        return endpoint_record(endpoint)

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Remove an endpoint. It gets no new deliveries; `forget_deliveries` takes out those that there are."""
        del self._endpoints[endpoint.id]
        own = self._of_tenant[endpoint.tenant]
        del own[endpoint.id]
        if not own:
            del self._of_tenant[endpoint.tenant]

    def forget_deliveries(self, endpoint_id: str, event_ids: Iterable[str]) -> list[EventRemoval | DeliveryRemoval]:
        """Take out deliveries to an endpoint that was removed, and the events that went to no other."""
        removed: list[EventRemoval | DeliveryRemoval] = []
        for event_id in event_ids:
            deliveries = self._deliveries.get(event_id)
            if deliveries is not None and endpoint_id in deliveries:
                self._forget_delivery(deliveries.pop(endpoint_id))
                removed.append(DeliveryRemoval(event_id, endpoint_id) if deliveries else self._drop(event_id))
        return removed

    def wanting(self, tenant: str, type_: EventType) -> list[Endpoint]:
        """Return a tenant's endpoints that get events of a type. A receiver that answered 410 gets none."""
        own = self._of_tenant.get(tenant)
        if not own:
            return []
        return [each for each in own.values() if each.wants(type_) and each.reason is not Reason.GONE]

    def tenants(self) -> list[str]:
        """Return the tenants that have endpoints."""
        return list(self._of_tenant)

    # -- events --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self._events)

    def count(self, state: DeliveryState) -> int:
        """Return the number of deliveries in a state."""
        return self._states[state]

    def has(self, event_id: str) -> bool:
        """Return True if an event is kept."""
        return event_id in self._events

    def event(self, event_id: str) -> Event | None:
        """Return an event, without its payload."""
        return self._events.get(event_id)

    def delivery(self, key: Key) -> Delivery | None:
        """Return a delivery."""
        return self._deliveries.get(key[0], _EMPTY).get(key[1])

    def deliveries_of(self, event_id: str) -> list[Delivery]:
        """Return the deliveries of an event."""
        return list(self._deliveries.get(event_id, _EMPTY).values())

    @property
    def room(self) -> int:
        """Return the number of deliveries that there is room for."""
        return self._max_deliveries - self._held.total

    def events_of(self, tenant: str) -> list[Event]:
        """Return a tenant's events, the oldest first."""
        return [self._events[event_id] for event_id in self._events_of.get(tenant, ())]

    def ids_of(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's events, the oldest first."""
        return list(self._events_of.get(tenant, ()))

    def add(self, event: Event, deliveries: Sequence[Delivery], now: Now) -> list[EventRemoval | DeliveryRemoval]:
        """Add an event and its deliveries, which are in the journal. Return removals of what is past the bounds.

        If an endpoint was deleted while the journal was written, its delivery is removed, too.
        """
        if event.id not in self._events:
            self._put_event(event, now)
            if event.payload:
                self.cache(event.id, event.payload)
        for delivery in deliveries:
            self.put(delivery, now)
        own = self._deliveries[event.id]
        if not own:
            return [self._drop(event.id)]
        lost = [DeliveryRemoval(*each.key) for each in deliveries if each.endpoint_id not in own]
        return [*lost, *self.over_bounds()]

    def _put_event(self, event: Event, now: Now) -> None:
        size = event.size or len(event.payload)
        self._events[event.id] = replace(event, payload=b"", size=size)
        self._events_of.setdefault(event.tenant, OrderedDict())[event.id] = None
        # If the clock was wrong when it happened, it counts as of now, because else it would be kept for too long.
        self._by_age.put(event.id, min(event.happened_at, now.wall), len(self._events))
        self._deliveries[event.id] = {}
        self._counts.add(event.tenant)
        self._bytes += size

    def put(self, delivery: Delivery, now: Now, pause: float = 0.0) -> None:
        """Add or replace a delivery. A pending one is queued for its time, `pause` seconds from now at the earliest.

        There is no new delivery of an event that was dropped, or to an endpoint that was removed.
        """
        own, recipient = self._deliveries.get(delivery.event_id), self.recipient_of(delivery)
        if own is None or (recipient is None and delivery.endpoint_id not in own):
            return
        former = own.get(delivery.endpoint_id)
        if former is not None:
            self._states[former.state] -= 1
        else:
            self._held.add(delivery.tenant)
        own[delivery.endpoint_id] = delivery
        self._states[delivery.state] += 1
        if delivery.is_pending and recipient is not None:
            self.queues.put(delivery.key, recipient, now.monotonic + max(_wait_of(delivery, now.wall), pause))
        else:
            self.queues.remove(delivery.key)

    def recipient_of(self, delivery: Delivery) -> Recipient | None:
        """Return the receiver of a delivery; None if its endpoint is gone."""
        if delivery.target is not None:
            host = host_of(delivery.target.url)
            return Recipient(delivery.tenant, host, host)
        endpoint = self._endpoints.get(delivery.endpoint_id)
        return None if endpoint is None else Recipient(endpoint.tenant, endpoint.id, host_of(endpoint.url))

    def restore(
        self, events: Iterable[Event], deliveries: Iterable[Delivery], now: Now
    ) -> list[EventRemoval | DeliveryRemoval]:
        """Put back events and deliveries of an earlier run, after the endpoints. Return removals of what is of no use.

        A delivery without its event or its endpoint, and an event without deliveries, may be left by an end of the
        gateway between two commits.
        """
        for event in events:
            self._put_event(event, now)
        lost: dict[str, None] = {}
        useless: list[Delivery] = []
        for delivery in deliveries:
            if delivery.event_id not in self._events:
                lost[delivery.event_id] = None
            elif self.recipient_of(delivery) is None:
                useless.append(delivery)
            else:
                self.put(delivery, now)
        lone = [event_id for event_id, own in self._deliveries.items() if not own]
        for event_id in lone:
            self._forget(event_id)
        self._restore_breakers(now)
        ended = [DeliveryRemoval(*each.key) for each in useless if each.event_id in self._events]
        return [*(EventRemoval(event_id) for event_id in (*lone, *lost)), *ended]

    def _restore_breakers(self, now: Now) -> None:
        """Leave alone each receiver that failed before the restart."""
        attempts: defaultdict[Recipient, list[Attempt]] = defaultdict(list)
        for own in self._deliveries.values():
            for each in own.values():
                recipient = self.recipient_of(each) if each.attempts else None
                if recipient is not None and self.queues.has_waiting(recipient):
                    attempts[recipient] += each.attempts
        for recipient, made in attempts.items():
            self.queues.set_breaker(recipient, breaker_after(made, now.wall, now.monotonic))

    def expired(self, now: float, maximum: int) -> list[EventRemoval]:
        """Drop events that were kept for their time, at most `maximum`. Return their removals."""
        return [self._drop(event_id) for event_id in self._by_age.take(now - self.keep, maximum)]

    def drop_jobs(self, event_ids: Iterable[str], prompt_ids: Collection[str]) -> tuple[list[EventRemoval], list[str]]:
        """Drop those of a tenant's events that are of jobs which their owner deleted.

        Return their removals, and the ids of those that stay. An event stays while a delivery of it is pending, because
        a receiver waits for it.
        """
        known = (self._events[each] for each in event_ids if each in self._events)
        own = [each.id for each in known if each.prompt_id in prompt_ids]
        staying = [each for each in own if self._is_pending(each)]
        return [self._drop(each) for each in own if not self._is_pending(each)], staying

    def drop(self, event_ids: Iterable[str]) -> list[EventRemoval]:
        """Drop events. Return the removals of those that were there."""
        return [self._drop(each) for each in event_ids if each in self._events]

    def _is_pending(self, event_id: str) -> bool:
        return any(each.is_pending for each in self._deliveries[event_id].values())

    def change_payload(self, event_id: str, payload: bytes) -> EventPayload:
        """Give an event another payload."""
        event = self._events[event_id]
        self._bytes += len(payload) - event.size
        self._events[event_id] = replace(event, size=len(payload))
        self.cache(event_id, payload)
        return EventPayload(event_id, payload)

    def over_bounds(self, maximum: int = BATCH) -> list[EventRemoval]:
        """Drop events past the bounds, at most `maximum`. Return their removals."""
        removed: list[EventRemoval] = []
        while len(removed) < maximum and (tenant := self._in_excess()) is not None:
            removed.append(self._drop(next(iter(self._events_of[tenant]))))
        return removed

    def _in_excess(self) -> str | None:
        """Return the tenant whose oldest event goes next; None while all bounds hold."""
        if self._counts.top > self._max_events:
            return self._counts.largest()
        if len(self._events) > self._max_total or self._bytes > self._max_bytes:
            return self._counts.largest()
        return self._held.largest() if self._held.total > self._max_deliveries else None

    def _drop(self, event_id: str) -> EventRemoval:
        self._forget(event_id)
        return EventRemoval(event_id)

    def _forget(self, event_id: str) -> None:
        event = self._events.pop(event_id)
        for delivery in self._deliveries.pop(event_id).values():
            self._forget_delivery(delivery)
        own = self._events_of[event.tenant]
        del own[event_id]
        if not own:
            del self._events_of[event.tenant]
        self._counts.remove(event.tenant)
        self._bytes -= event.size
        self._payloads.remove(event_id)

    def _forget_delivery(self, delivery: Delivery) -> None:
        self._states[delivery.state] -= 1
        self._held.remove(delivery.tenant)
        self.queues.remove(delivery.key)
        if delivery.is_pending:
            self._dropped(delivery)

    # -- payloads ------------------------------------------------------------------------------------------------

    def cache(self, event_id: str, payload: bytes) -> None:
        """Keep a payload in memory, in place of those that were used longest ago."""
        if event_id in self._events:
            self._payloads.put(event_id, payload)

    def cached(self, event_id: str) -> bytes | None:
        """Return a payload if memory has it."""
        return self._payloads.get(event_id)

    # -- lists ---------------------------------------------------------------------------------------------------

    def page(
        self,
        tenant: str | None,
        endpoint_id: str | None,
        state: DeliveryState | None,
        after: str | None,
        limit: int,
    ) -> Page:
        """Return a page of deliveries, the newest event first. All deliveries of an event are on one page."""
        ids = list(self._events if tenant is None else self._events_of.get(tenant, ()))
        end = len(ids) if after is None else self._end_of(ids, after)
        start = max(end - MAX_LOOKED, 0)
        found: list[Listed] = []
        for place in range(end - 1, start - 1, -1):
            event_id = ids[place]
            own = [
                each
                for each in self._deliveries[event_id].values()
                if (endpoint_id is None or each.endpoint_id == endpoint_id) and (state is None or each.state is state)
            ]
            if not own:
                continue
            if found and len(found) + len(own) > limit:
                return Page(tuple(found), _cursor(self._events[ids[place + 1]]))
            found += [Listed(each, self._events[event_id]) for each in own]
        return Page(tuple(found), _cursor(self._events[ids[start]]) if start else None)

    def _end_of(self, ids: Sequence[str], after: str) -> int:
        """Return the place up to which events are behind a cursor; by its time if its event is gone."""
        millis, _, last_id = after.partition(".")
        if last_id in self._events:
            try:
                return ids.index(last_id)
            except ValueError:
                # It is another tenant's.
                pass
        until = int(millis) if millis.isdecimal() else 0
        return bisect_right(ids, until, key=lambda event_id: round(self._events[event_id].happened_at * 1000))


def _wait_of(delivery: Delivery, now: float) -> float:
    """Return the seconds to the next attempt. The first one waits for nothing, because the clock may have been set."""
    if delivery.tries == 0 or delivery.next_at is None:
        return 0.0
    return min(max(delivery.next_at - now, 0.0), MAX_WAIT)


def _cursor(event: Event) -> str:
    return f"{round(event.happened_at * 1000)}.{event.id}"


def host_of(url: str) -> str:
    """Return the host and the port of a URL that was checked."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def deliveries_for(event: Event, endpoints: Iterable[Endpoint], target: Target | None = None) -> list[Delivery]:
    """Return the deliveries of a new event. To a disabled endpoint they are dead, and can be replayed."""
    made = [
        Delivery(event.id, each.id, event.tenant, next_at=event.happened_at)
        if each.is_enabled
        else Delivery(event.id, each.id, event.tenant, DeliveryState.DEAD)
        for each in endpoints
    ]
    if target is not None:
        made.append(Delivery(event.id, OF_PROMPT, event.tenant, next_at=event.happened_at, target=target))
    return made


def again(delivery: Delivery, now: float) -> Delivery:
    """Return a delivery that is replayed: its schedule begins anew, its attempts stay listed.

    One whose schedule has just begun stays as it is.
    """
    if delivery.is_pending and delivery.tries == 0:
        return delivery
    return replace(delivery, state=DeliveryState.PENDING, tries=0, next_at=now)


def ended_by_endpoint(delivery: Delivery) -> Delivery:
    """Return a pending delivery that is dead, because its endpoint was disabled."""
    return replace(delivery, state=DeliveryState.DEAD, next_at=None)
