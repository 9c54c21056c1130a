"""Delivery of events: a supervised loop takes what is due, and each attempt is a task of its own.

At least once: an attempt is journalled after the receiver's answer. If the gateway ends between the two, the next run
sends the event again, under the same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from gateway.store.protocol import Change, Store, StoreError
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tasks import Failures, Loop, Tasks
from gateway.webhooks.model import (
    Attempt,
    Delivery,
    Endpoint,
    EndpointState,
    Event,
    EventType,
    Reason,
)
from gateway.webhooks.outbox import BATCH, Now, Outbox, ended_by_endpoint
from gateway.webhooks.queues import Key
from gateway.webhooks.records import delivery_record
from gateway.webhooks.schedule import Verdict, after_attempt, after_verdict, verdict_of
from gateway.webhooks.sender import UNREACHABLE, Failure, Outcome
from gateway.webhooks.signing import signed_headers
from gateway.webhooks.stored_urls import AddLinks

_log = logs.get("webhooks")

# Maximum seconds between two rounds of the loop.
MAX_REST = 60.0
# Seconds after which a delivery is looked at again of which no attempt was made, because its payload can't be read or
# the gateway is short of threads; up to twice as long, so that not all come back together.
AGAIN_SECONDS = 5.0
# Seconds that such a delivery stays under way, so that a tenant for whom threads lack has few looks a second.
BUSY_SECONDS = 1.0
# Seconds that attempts which are under way have when the gateway stops. After a restart receivers then get fewer twice.
GRACE_SECONDS = 1.0


class Poster(Protocol):
    """Sender of one attempt: `gateway.webhooks.sender.Sender`."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, tenant: str = "") -> Outcome:
        """Make one attempt for a tenant. It raises nothing for what a receiver does."""


def now() -> Now:
    """Return the present moment."""
    return Now(time.time(), time.monotonic())


class Deliveries:
    """Delivery of the events in the outbox.

    Args:
        disable_after: seconds of failures after which an endpoint is disabled.

    Attributes:
        links: adds links to stored outputs to what is sent; None if receivers get none.
    """

    def __init__(self, outbox: Outbox, store: Store, sender: Poster, disable_after: float, metrics: Metrics) -> None:
        self._outbox = outbox
        self._store = store
        self._sender = sender
        self._disable_after = disable_after
        self._metrics = metrics
        self._tasks = Tasks("webhooks")
        self._attempts = Tasks("webhooks")
        self._failures = Failures()
        self._loop: Loop | None = None
        # Endpoints that fail, since when in this run.
        self._failing: dict[str, float] = {}
        self.links: AddLinks | None = None

    def start(self) -> None:
        """Begin to deliver."""
        self._loop = self._tasks.repeat(self._round, "deliver", self._rest)

    async def close(self) -> None:
        """Stop. An attempt that takes longer than `GRACE_SECONDS` is broken off; the next run makes it again."""
        await self._tasks.close()
        await self._attempts.finish(GRACE_SECONDS)

    def forget_endpoint(self, endpoint_id: str) -> None:
        """Forget what is known of an endpoint that is deleted."""
        self._failing.pop(endpoint_id, None)

    def add(self, event: Event, deliveries: Sequence[Delivery]) -> None:
        """Send a new event that the journal has."""
        if removed := self._outbox.add(event, deliveries, now()):
            self.write(removed)
        self.wake()

    def put(self, deliveries: Iterable[Delivery]) -> list[Change]:
        """Take deliveries that are replayed, or ended. Return the changes to write."""
        moment, changes = now(), list[Change]()
        for each in deliveries:
            self._outbox.put(each, moment)
            changes.append(delivery_record(each))
        self.wake()
        return changes

    def wake(self) -> None:
        """Look for deliveries that are due now."""
        if self._loop is not None:
            self._loop.wake()

    def write(self, changes: Sequence[Change]) -> None:
        """Write changes that have happened, in commits that are not long."""
        for start in range(0, len(changes), BATCH):
            self._store.write(changes[start : start + BATCH]).add_done_callback(_note_refused)

    async def payload(self, event_id: str) -> bytes | None:
        """Return the payload of an event; None if the event is gone.

        Raises:
            StoreError: it can't be read.
        """
        payload = self._outbox.cached(event_id)
        if payload is None:
            payload = await self._store.webhook_payload(event_id)
            # It may have been replaced meanwhile.
            payload = self._outbox.cached(event_id) or payload
            if payload is not None:
                self._outbox.cache(event_id, payload)
        return payload

    async def _payload_or_loss(self, event: Event) -> bytes | None:
        """Return the payload of an event. If the journal lost it, drop the event, because no attempt can be made.

        Raises:
            StoreError: it can't be read.
        """
        payload = await self.payload(event.id)
        if payload is None:
            # If the disk is full, the event itself may wait to be written. Each write is done after those before it.
            await self._store.write([])
            payload = await self.payload(event.id)
        if payload is None and self._outbox.has(event.id):
            _log.error("webhook_event_lost", event_id=event.id, tenant=event.tenant, reason="no payload in the journal")
            self.write(self._outbox.drop([event.id]))
        return payload

    async def _round(self) -> None:
        for key in self._outbox.queues.take(time.monotonic()):
            self._attempts.start(self._deliver(key), key[0])

    def _rest(self) -> float:
        return min(max(self._outbox.queues.next_at() - time.monotonic(), 0.0), MAX_REST)

    async def _deliver(self, key: Key) -> None:
        """Make one attempt, and plan the next."""
        queues = self._outbox.queues
        try:
            await self._attempt(key)
        except StoreError as error:
            # If the payload can't be read now, try again; the attempt was not made.
            _log.warning("webhook_not_read", event_id=key[0], error=str(error))
        except Exception as error:  # noqa: BLE001
            # If this breaks the gateway's own code, count an attempt, because else it would be made again for ever.
            self._failures.report("webhooks", error, f"webhooks:{key[0]}")
            if (delivery := self._outbox.delivery(key)) is not None:
                self._note(delivery, Attempt(time.time(), None, 0.0, "gateway"), None)
        finally:
            if queues.is_under_way(key):
                queues.ended(key)
            delivery = self._outbox.delivery(key)
            if delivery is not None and delivery.is_pending and not queues.has(key):
                pause = AGAIN_SECONDS * (1 + random.random())
                self._outbox.put(replace(delivery, next_at=time.time() + pause), now(), pause)
            self.wake()

    async def _attempt(self, key: Key) -> None:
        delivery, event = self._outbox.delivery(key), self._outbox.event(key[0])
        if delivery is None or event is None or not delivery.is_pending:
            return
        endpoint = self._outbox.endpoint(delivery.endpoint_id) if delivery.target is None else None
        if endpoint is not None and not endpoint.is_enabled and event.type is not EventType.TEST:
            self.write(self.put([ended_by_endpoint(delivery)]))
            return
        payload = await self._payload_or_loss(event)
        if payload is None:
            return
        at, secrets = time.time(), tuple[str, ...]()
        if delivery.target is not None:
            url = delivery.target.url
            secrets = (delivery.target.secret,) if delivery.target.secret else ()
        elif endpoint is not None:
            url, secrets = endpoint.url, endpoint.secrets_at(at)
        else:
            return
        if self.links is not None:
            payload = await self.links.to(event, payload)
        headers = signed_headers(secrets, event.id, int(at), payload)
        outcome = await self._sender.post(url, headers, payload, delivery.tenant)
        if outcome.error is Failure.BUSY:
            # If the gateway itself could not make the attempt, count none, because the receiver is not at fault.
            _log.info("webhook_postponed", event_id=event.id, tenant=delivery.tenant, detail=outcome.detail)
            await asyncio.sleep(BUSY_SECONDS * (1 + random.random()))
            return
        self._metrics.webhook_seconds.observe(outcome.seconds)
        if outcome.error is not Failure.NONE:
            about = {"event_id": event.id, "endpoint": delivery.endpoint_id or None, "tenant": delivery.tenant}
            _log.info("webhook_attempt_failed", **about, error=str(outcome.error), detail=outcome.detail)
        shown = outcome.shown()
        # Time tells an open port from a closed one.
        seconds = 0.0 if shown == UNREACHABLE else outcome.seconds
        current = self._outbox.delivery(key)
        if current is not None:
            self._note(current, Attempt(at, outcome.status, seconds, shown), outcome.retry_after)

    def _note(self, delivery: Delivery, attempt: Attempt, retry_after: float | None) -> None:
        """Note an attempt: of the delivery, of the receiver's circuit breaker, and of the endpoint."""
        event = self._outbox.event(delivery.event_id)
        if event is None:
            return
        queues, moment, verdict, chance = self._outbox.queues, now(), verdict_of(attempt), random.random()
        recipient = self._outbox.recipient_of(delivery)
        is_back = False
        if queues.is_under_way(delivery.key):
            is_back = queues.breaker(delivery.key).note(verdict, moment.monotonic, chance, retry_after)
            queues.ended(delivery.key)
        endpoint = self._outbox.endpoint(delivery.endpoint_id)
        changes: list[Change] = []
        if delivery.is_pending:
            ends_at = event.happened_at + self._outbox.keep
            tried = after_attempt(delivery, attempt, retry_after, moment.wall, ends_at, chance)
            if tried.is_pending and endpoint is not None and not endpoint.is_enabled:
                tried = ended_by_endpoint(tried)
            self._outbox.put(tried, moment)
            changes.append(delivery_record(tried))
            self._count(tried)
        if endpoint is not None and event.type is not EventType.TEST:
            changes += self._judge(endpoint, verdict, moment)
        if is_back and recipient is not None:
            queues.hasten(recipient, moment.monotonic)
        self.write(changes)

    def _count(self, delivery: Delivery) -> None:
        outcome = "failed" if delivery.is_pending else str(delivery.state)
        self._metrics.webhook_deliveries.labels(outcome).inc()

    def _judge(self, endpoint: Endpoint, verdict: Verdict, moment: Now) -> list[Change]:
        """Note an endpoint's success or failure. Return the changes to write."""
        seen_for = 0.0
        if verdict is Verdict.SUCCESS:
            self._failing.pop(endpoint.id, None)
        else:
            seen_for = moment.monotonic - self._failing.setdefault(endpoint.id, moment.monotonic)
        judged = after_verdict(endpoint, verdict, moment.wall, seen_for, self._disable_after)
        if judged.is_enabled or not endpoint.is_enabled:
            return [] if judged is endpoint else [self._outbox.put_endpoint(judged)]
        return [self.disable(judged, judged.reason)]

    def disable(self, endpoint: Endpoint, reason: Reason) -> Change:
        """Disable an endpoint. What is pending is dead, a few at a time. Return the change to write."""
        if reason is not Reason.OWNER:
            _log.warning("webhook_disabled", endpoint=endpoint.id, tenant=endpoint.tenant, reason=str(reason))
        self._failing.pop(endpoint.id, None)
        self._tasks.start(self._end_pending(endpoint), endpoint.id)
        return self._outbox.put_endpoint(replace(endpoint, state=EndpointState.DISABLED, reason=reason))

    async def _end_pending(self, endpoint: Endpoint) -> None:
        """End the pending deliveries to an endpoint that was disabled, in steps that are short."""
        ids = self._outbox.ids_of(endpoint.tenant)
        for start in range(0, len(ids), BATCH):
            current = self._outbox.endpoint(endpoint.id)
            if current is None or current.is_enabled:
                return
            found = (self._outbox.delivery((event_id, endpoint.id)) for event_id in ids[start : start + BATCH])
            if changes := self.put(ended_by_endpoint(each) for each in found if each is not None and each.is_pending):
                await self._store.write(changes)
            await asyncio.sleep(0)


def _note_refused(done: asyncio.Future[None]) -> None:
    """Log that the journal refused what has happened, because after a restart deliveries may be made again."""
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("webhook_change_lost", error=str(error))
