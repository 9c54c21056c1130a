"""Endpoints, events and deliveries as the journal keeps them, and back. Pure."""

from __future__ import annotations

from typing import Any

from gateway.comfy import json_codec
from gateway.store.webhook_records import DeliveryRecord, EndpointRecord, EventRecord
from gateway.webhooks.model import (
    Attempt,
    Delivery,
    DeliveryState,
    Endpoint,
    EndpointState,
    Event,
    EventType,
    Reason,
    Secret,
    Source,
    Target,
)

# Errors of reading a record that is not as it was written.
UNREADABLE = (json_codec.MalformedJson, LookupError, TypeError, ValueError, AttributeError)


def endpoint_record(endpoint: Endpoint) -> EndpointRecord:
    """Return an endpoint's row."""
    return EndpointRecord(
        endpoint.id,
        endpoint.tenant,
        endpoint.url,
        _dumps(sorted(endpoint.events)),
        _dumps([[each.text, _milliseconds(each.valid_until)] for each in endpoint.secrets]),
        str(endpoint.state),
        str(endpoint.reason),
        endpoint.description,
        int(endpoint.is_admin),
        str(endpoint.source),
        round(endpoint.created_at * 1000),
        _milliseconds(endpoint.failing_since),
    )


def endpoint_of(record: EndpointRecord) -> Endpoint:
    """Return the endpoint of a row.

    Raises:
        UNREADABLE: the row is damaged.
    """
    return Endpoint(
        record.id,
        record.tenant,
        record.url,
        frozenset(EventType(each) for each in json_codec.loads(record.events)),
        tuple(Secret(str(text), _seconds(until)) for text, until in json_codec.loads(record.secrets)),
        record.created_at / 1000,
        record.description,
        bool(record.is_admin),
        Source(record.source),
        EndpointState(record.state),
        Reason(record.reason),
        _seconds(record.failing_since),
    )


def event_record(event: Event) -> EventRecord:
    """Return an event's row, with its payload."""
    happened_at = round(event.happened_at * 1000)
    return EventRecord(event.id, event.tenant, str(event.type), event.prompt_id, happened_at, event.payload, event.size)


def event_of(record: EventRecord) -> Event:
    """Return the event of a row, without its payload.

    Raises:
        UNREADABLE: the row is damaged.
    """
    type_, happened_at = EventType(record.type), record.happened_at / 1000
    return Event(record.id, record.tenant, type_, happened_at, record.prompt_id, b"", int(record.size))


def delivery_record(delivery: Delivery) -> DeliveryRecord:
    """Return a delivery's row."""
    target = delivery.target
    attempts = [
        [round(each.at * 1000), each.status, round(each.seconds, 3), each.outcome] for each in delivery.attempts
    ]
    return DeliveryRecord(
        delivery.event_id,
        delivery.endpoint_id,
        delivery.tenant,
        str(delivery.state),
        _dumps(attempts) if attempts else "[]",
        delivery.tries,
        _milliseconds(delivery.next_at),
        None if target is None else _dumps({"url": target.url, "secret": target.secret}),
    )


def delivery_of(record: DeliveryRecord) -> Delivery:
    """Return the delivery of a row.

    Raises:
        UNREADABLE: the row is damaged.
    """
    attempts = () if record.attempts == "[]" else json_codec.loads(record.attempts)
    target = None
    if record.target is not None:
        given = json_codec.loads(record.target)
        target = Target(str(given["url"]), given["secret"])
    return Delivery(
        record.event_id,
        record.endpoint_id,
        record.tenant,
        DeliveryState(record.state),
        tuple(Attempt(at / 1000, status, float(seconds), str(outcome)) for at, status, seconds, outcome in attempts),
        record.tries,
        _seconds(record.next_at),
        target,
    )


def _dumps(value: Any) -> str:
    return json_codec.dumps(value).decode()


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
