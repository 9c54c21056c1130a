"""Webhooks as routes and commands use them: endpoints, deliveries, replay. The journal has each change first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from gateway.jobs.files.entry_links import EntryLinks
from gateway.settings.webhooks import WebhookSettings
from gateway.store.protocol import Change, Store, StoreError
from gateway.store.webhook_records import EndpointRemoval
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Tasks
from gateway.telemetry.times import HOLD_SECONDS, SteadyClock
from gateway.tenants.stored_keys import ANSWER_WITHIN, durable
from gateway.webhooks.delivery import Deliveries, Poster, now
from gateway.webhooks.job_events import JobEvents
from gateway.webhooks.model import (
    OF_BACKENDS,
    OF_JOBS,
    Delivery,
    DeliveryState,
    Endpoint,
    EndpointState,
    Event,
    EventType,
    NotFound,
    Page,
    Reason,
    Secret,
    Source,
    TooManyEndpoints,
    WebhookRefused,
    config_endpoint_id,
    event_types,
    new_endpoint_id,
    new_event_id,
)
from gateway.webhooks.outbox import BATCH, MAX_LOOKED, Outbox
from gateway.webhooks.payload import test_payload, without_content
from gateway.webhooks.queues import Limits, Queues
from gateway.webhooks.records import (
    UNREADABLE,
    delivery_of,
    delivery_record,
    endpoint_of,
    endpoint_record,
    event_of,
    event_record,
)
from gateway.webhooks.removals import Removals
from gateway.webhooks.replay import Replays
from gateway.webhooks.signing import new_secret
from gateway.webhooks.stored_urls import StoredUrls
from gateway.webhooks.urls import Rules, check_url

_log = logs.get("webhooks")
_R = TypeVar("_R")
_T = TypeVar("_T")

MAX_PAGE = 200
SWEEP_SECONDS = 60.0
_IN_FILE = "the endpoint is in the configuration (webhooks.endpoints): change it there, and restart"


class Webhooks:
    """The webhooks of all tenants. `tenant` None stands for all tenants, for an admin.

    Call `restore`, then `start`, at the end `close`. Each method that changes something may raise `StoreError`, if the
    journal can't take it.

    Args:
        rules: bounds of the URLs of endpoints.
        sender: makes each attempt.

    Attributes:
        job_events: the part that hears of jobs and backends.
    """

    def __init__(self, settings: WebhookSettings, rules: Rules, sender: Poster, store: Store, metrics: Metrics) -> None:
        self._settings = settings
        self._rules = rules
        self._store = store
        self._metrics = metrics
        limits = Limits(settings.max_in_flight, settings.max_per_host, settings.max_in_flight_total)
        self._outbox = Outbox(Queues(limits), settings.max_events, settings.keep, self._note_dropped)
        self._deliveries = Deliveries(self._outbox, store, sender, settings.disable_after, metrics)
        self.job_events = JobEvents(store, self._outbox, self._deliveries, metrics, settings.public_url)
        self._tasks = Tasks("webhooks")
        self._replays = Replays(store, self._outbox, self._deliveries)
        self._removals = Removals(store, self._outbox, self._tasks)
        # Each tenant's changes of endpoints come one after the other. A lock is kept while a change uses it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        moment = now()
        self._clock = SteadyClock(min(HOLD_SECONDS, settings.keep / 4), moment.wall, moment.monotonic)
        metrics.webhook_pending.set_function(lambda: self._outbox.count(DeliveryState.PENDING))
        metrics.webhook_dead.set_function(lambda: self._outbox.count(DeliveryState.DEAD))

    def link_stored(self, links: EntryLinks) -> None:
        """Add links to stored outputs to what is sent."""
        self._deliveries.links = StoredUrls(links, self._settings.public_url)

    async def restore(self) -> None:
        """Read endpoints, events and deliveries from the journal, and the endpoints of the configuration.

        Raises:
            StoreError: the journal can't be read.
        """
        known = self._read(endpoint_of, await self._store.webhook_endpoints())
        configured = self._configured({each.id: each for each in known})
        gone: list[Change] = []
        for endpoint in known:
            is_known = endpoint.source is Source.API or endpoint.id in configured
            if endpoint.reason is Reason.DELETED or not is_known:
                gone.append(EndpointRemoval(endpoint.id))
            elif endpoint.source is Source.API:
                self._outbox.put_endpoint(endpoint)
        changes: list[Change] = [self._outbox.put_endpoint(endpoint) for endpoint in configured.values()]
        events = self._read(event_of, await self._store.webhook_events())
        deliveries = self._read(delivery_of, await self._store.webhook_deliveries())
        changes += self._outbox.restore(events, deliveries, now())
        while removed := self._outbox.over_bounds():
            changes += removed
            await asyncio.sleep(0)
        # The endpoints last: if the gateway ends before, the next start goes on.
        await self._write_in_turn([*changes, *gone])

    async def _write_in_turn(self, changes: Sequence[Change]) -> None:
        """Write changes in commits that are not long. While the disk is stuck, queue the rest, and don't wait."""
        is_stuck = False
        for start in range(0, len(changes), BATCH):
            write = self._store.write(changes[start : start + BATCH])
            if not is_stuck:
                done, _ = await asyncio.wait([write], timeout=ANSWER_WITHIN)
                is_stuck = not done

    def _read(self, read: Callable[[_R], _T], records: Iterable[_R]) -> list[_T]:
        """Return the values of records. Leave damaged ones out, because all others are to be delivered."""
        values, damaged = [], 0
        for record in records:
            try:
                values.append(read(record))
            except UNREADABLE:
                damaged += 1
        if damaged:
            _log.error("webhook_rows_damaged", rows=damaged)
        return values

    def _configured(self, known: dict[str, Endpoint]) -> dict[str, Endpoint]:
        """Return the endpoints of the configuration. One with the URL that it had keeps its state."""
        made = {}
        for each in self._settings.endpoints:
            id_, types = config_endpoint_id(each.name), event_types(each.events, is_admin=True)
            secrets, before = (Secret(each.secret),), known.get(id_)
            made[id_] = Endpoint(
                id_,
                each.tenant,
                check_url(each.url, self._rules),
                types,
                secrets,
                time.time() if before is None else before.created_at,
                each.name,
                is_admin=True,
                source=Source.CONFIG,
            )
            if before is not None and before.url == made[id_].url:
                state = {"state": before.state, "reason": before.reason, "failing_since": before.failing_since}
                made[id_] = replace(made[id_], **state)  # type: ignore[arg-type]
        return made

    def start(self) -> None:
        """Begin to deliver, and to drop events that were kept for their time."""
        if self._settings.enabled:
            self._deliveries.start()
        self._tasks.repeat(self._sweep, "sweep", min(SWEEP_SECONDS, self._settings.keep / 4), at_once=False)

    async def close(self) -> None:
        """Stop. The next start delivers what is pending."""
        await self._tasks.close()
        await self._deliveries.close()

    # -- endpoints -----------------------------------------------------------------------------------------------

    async def create(
        self,
        tenant: str,
        url: str,
        events: Collection[str] = (),
        description: str = "",
        *,
        is_admin: bool = False,
    ) -> tuple[Endpoint, str]:
        """Make an endpoint. Return it and its secret, which no other method returns.

        Args:
            events: the types of events that it gets; the terminal ones if empty.
            is_admin: True if an admin makes it, so that it may get events of backends.

        Raises:
            BadUrl: the URL may not be delivered to.
            WebhookRefused: an event is unknown or not for this tenant, or webhooks are off.
            TooManyEndpoints: the tenant has too many.
        """
        async with self._lock_of(tenant):
            if not self._settings.enabled:
                raise WebhookRefused("webhooks are off (webhooks.enabled)")
            url, types = check_url(url, self._rules), _types(events, is_admin=is_admin)
            count, maximum = len(self._outbox.endpoints(tenant)), self._settings.max_endpoints
            if count >= maximum:
                raise TooManyEndpoints(
                    f"there are {count} endpoints, as many as webhooks.max_endpoints allows; delete one, or raise it"
                )
            if count + self._removals.count(tenant) >= maximum:
                # Each deletion may be long, so a tenant has a maximum of them, too.
                raise TooManyEndpoints("an endpoint is still being deleted; ask again in a minute")
            secret = new_secret()
            endpoint = Endpoint(
                new_endpoint_id(), tenant, url, types, (Secret(secret),), time.time(), description, is_admin
            )
            await self._store.try_write([endpoint_record(endpoint)])
            self._outbox.put_endpoint(endpoint)
            return endpoint, secret

    def endpoints(self, tenant: str | None) -> list[Endpoint]:
        """Return a tenant's endpoints, the oldest first."""
        return self._outbox.endpoints(tenant)

    def endpoint(self, tenant: str | None, endpoint_id: str) -> Endpoint:
        """Return an endpoint.

        Raises:
            NotFound: the tenant has none of this id. The same holds for all methods below.
        """
        endpoint = self._outbox.endpoint(endpoint_id)
        if endpoint is None or (tenant is not None and endpoint.tenant != tenant):
            raise NotFound(f"there is no endpoint {endpoint_id[:64]}")
        return endpoint

    async def update(
        self,
        tenant: str | None,
        endpoint_id: str,
        *,
        events: Collection[str] | None = None,
        description: str | None = None,
    ) -> Endpoint:
        """Change an endpoint's events or its description, those that are given.

        Raises:
            WebhookRefused: an event is not for this endpoint, or the endpoint is the configuration's.
        """
        async with self._lock_of(self.endpoint(tenant, endpoint_id).tenant):
            endpoint, fields = self._own(tenant, endpoint_id), dict[str, Any]()
            if events is not None:
                fields["events"] = _types(events, is_admin=endpoint.is_admin)
            if description is not None:
                fields["description"] = description
            return await self._change(endpoint, **fields)

    async def delete(self, tenant: str | None, endpoint_id: str) -> None:
        """Delete an endpoint and its deliveries. A repeated call waits for the same deletion.

        Raises:
            WebhookRefused: it is the configuration's.
        """
        if not self._removals.has(tenant, endpoint_id):
            async with self._lock_of(self.endpoint(tenant, endpoint_id).tenant):
                if not self._removals.has(tenant, endpoint_id):
                    self._removals.start(self._own(tenant, endpoint_id))
                    self._deliveries.forget_endpoint(endpoint_id)
        await self._removals.wait(endpoint_id)

    async def disable(self, tenant: str | None, endpoint_id: str) -> Endpoint:
        """Send nothing more to an endpoint. What is pending is dead, and what comes is kept dead, to be replayed."""
        async with self._lock_of(self.endpoint(tenant, endpoint_id).tenant):
            endpoint = self.endpoint(tenant, endpoint_id)
            if endpoint.is_enabled:
                change = self._deliveries.disable(endpoint, Reason.OWNER)
                await durable(self._store.write([change]), f"the endpoint {endpoint_id} is disabled")
            return self.endpoint(tenant, endpoint_id)

    async def enable(self, tenant: str | None, endpoint_id: str) -> Endpoint:
        """Send events to an endpoint again. Replay sends those that came meanwhile."""
        async with self._lock_of(self.endpoint(tenant, endpoint_id).tenant):
            endpoint = self.endpoint(tenant, endpoint_id)
            if endpoint.is_enabled:
                return endpoint
            return await self._change(endpoint, state=EndpointState.ENABLED, reason=Reason.NONE, failing_since=None)

    async def rotate(self, tenant: str | None, endpoint_id: str) -> tuple[Endpoint, str]:
        """Give an endpoint a new secret; the old one signs beside it for `webhooks.rotation_overlap`.

        Raises:
            WebhookRefused: it is the configuration's.
        """
        async with self._lock_of(self.endpoint(tenant, endpoint_id).tenant):
            endpoint, secret = self._own(tenant, endpoint_id), new_secret()
            old = Secret(endpoint.secrets[0].text, time.time() + self._settings.rotation_overlap)
            return await self._change(endpoint, secrets=(Secret(secret), old)), secret

    def event_types(self, *, is_admin: bool) -> tuple[EventType, ...]:
        """Return the types that an endpoint may choose."""
        allowed = OF_JOBS | OF_BACKENDS if is_admin else OF_JOBS
        return tuple(each for each in EventType if each in allowed)

    def _lock_of(self, tenant: str) -> asyncio.Lock:
        return self._locks.setdefault(tenant, asyncio.Lock())

    def _own(self, tenant: str | None, endpoint_id: str) -> Endpoint:
        endpoint = self.endpoint(tenant, endpoint_id)
        if endpoint.source is Source.CONFIG:
            raise WebhookRefused(_IN_FILE)
        return endpoint

    async def _change(self, endpoint: Endpoint, **fields: Any) -> Endpoint:
        """Write an endpoint with changed fields, and use it then."""
        await self._store.try_write([endpoint_record(replace(endpoint, **fields))])
        current = self.endpoint(None, endpoint.id)
        changed = replace(current, **fields)
        record = self._outbox.put_endpoint(changed)
        if current is not endpoint:
            # If an attempt changed it meanwhile, write both changes.
            self._store.write([record])
        return changed

    # -- deliveries ----------------------------------------------------------------------------------------------

    async def test(self, tenant: str | None, endpoint_id: str) -> str:
        """Send a test event to an endpoint, once if it is disabled. Return the event's id."""
        endpoint, moment = self.endpoint(tenant, endpoint_id), time.time()
        payload = test_payload(endpoint.id, moment)
        event = Event(new_event_id(), endpoint.tenant, EventType.TEST, moment, None, payload, len(payload))
        delivery = Delivery(event.id, endpoint.id, endpoint.tenant, next_at=moment)
        await self._store.try_write([event_record(event), delivery_record(delivery)])
        self._deliveries.add(event, [delivery])
        return event.id

    def deliveries(
        self,
        tenant: str | None,
        *,
        endpoint_id: str | None = None,
        state: DeliveryState | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Return deliveries, the newest event first, at most about `limit` and `MAX_PAGE`.

        Args:
            endpoint_id: those to an endpoint; None: to all of the tenant, prompts' own webhooks included.
            after: the `after` of the page before.
        """
        if endpoint_id is not None:
            tenant = self.endpoint(tenant, endpoint_id).tenant
        return self._outbox.page(tenant, endpoint_id, state, after, min(limit, MAX_PAGE))

    async def replay_event(self, tenant: str | None, event_id: str, endpoint_id: str | None = None) -> int:
        """Send an event again, under its id, to the endpoints that it went to, or to one of the tenant's.

        Return the number of deliveries.

        Raises:
            WebhookRefused: the endpoint is disabled, or the replay does not fit. The same holds for `replay_range`.
        """
        event = self._outbox.event(event_id)
        if event is None or (tenant is not None and event.tenant != tenant):
            raise NotFound(f"there is no event {event_id[:64]}")
        endpoint = None if endpoint_id is None else self.endpoint(event.tenant, endpoint_id)
        return await self._replays.replay_event(event_id, endpoint)

    async def replay_range(self, tenant: str | None, endpoint_id: str, since: float, until: float) -> int:
        """Send all events of a time to an endpoint again that it takes. Return the number of deliveries.

        Raises:
            WebhookRefused: another such replay of the tenant is under way.
        """
        return await self._replays.replay_range(self.endpoint(tenant, endpoint_id), since, until)

    async def forget_jobs(self, tenant: str, prompt_ids: Collection[str]) -> None:
        """Drop the events of jobs that their owner deleted. Those that are pending lose what tells of the content."""
        ids, prompts = self._outbox.ids_of(tenant), frozenset(prompt_ids)
        writes, staying = list[asyncio.Future[None]](), list[str]()
        for start in range(0, len(ids), MAX_LOOKED):
            removed, pending = self._outbox.drop_jobs(ids[start : start + MAX_LOOKED], prompts)
            staying += pending
            # Write each removal before the next wait, because what memory has dropped must not come back after a crash.
            writes += [self._store.write(removed)] if removed else []
            await asyncio.sleep(0)
        for event_id in staying:
            try:
                payload = await self._deliveries.payload(event_id)
            except StoreError as error:
                # If it can't be read now, drop the event, because its content must not outlive the job.
                _log.warning("webhook_not_read", event_id=event_id, error=str(error))
                payload = None
            if payload is None:
                writes.append(self._store.write(self._outbox.drop([event_id])))
            elif self._outbox.has(event_id):
                writes.append(self._store.write([self._outbox.change_payload(event_id, without_content(payload))]))
        if writes:
            # While the disk is full, the writes wait, and the answer does not.
            await asyncio.wait(writes, timeout=ANSWER_WITHIN)

    # -- upkeep --------------------------------------------------------------------------------------------------

    def _note_dropped(self, _: Delivery) -> None:
        self._metrics.webhook_deliveries.labels("dropped").inc()

    async def _sweep(self) -> None:
        """Drop events that were kept for their time. After the clock was set their age is not known for a while."""
        moment = now()
        if not self._clock.is_steady(moment.wall, moment.monotonic):
            return
        while removed := self._outbox.expired(moment.wall, BATCH):
            # Wait for each commit, because all that is queued meanwhile would share the next one.
            await self._store.write(removed)


def _types(events: Collection[str], *, is_admin: bool) -> frozenset[EventType]:
    try:
        return event_types(events, is_admin=is_admin)
    except ValueError as error:
        raise WebhookRefused(f"events {error}") from error
