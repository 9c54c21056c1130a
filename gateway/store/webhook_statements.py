"""SQL of webhooks. PostgreSQL takes the same statements, with its own marks for parameters."""

from __future__ import annotations

import sqlite3
from operator import attrgetter

from gateway.store.webhook_records import (
    DeliveryRecord,
    DeliveryRemoval,
    EndpointRecord,
    EndpointRemoval,
    EventPayload,
    EventRecord,
    EventRemoval,
    WebhookChange,
)

_ENDPOINT_COLUMNS = (
    "id, tenant, url, events, secrets, state, reason, description, is_admin, source, created_at, failing_since"
)
_EVENT_COLUMNS = "id, tenant, type, prompt_id, happened_at, payload"
_DELIVERY_COLUMNS = "event_id, endpoint_id, tenant, state, attempts, tries, next_at, target"

ENDPOINTS = f"SELECT {_ENDPOINT_COLUMNS} FROM webhook_endpoints ORDER BY created_at, id"
EVENTS = "SELECT id, tenant, type, prompt_id, happened_at, length(payload) FROM webhook_events ORDER BY happened_at, id"
DELIVERIES = f"SELECT {_DELIVERY_COLUMNS} FROM webhook_deliveries"
PAYLOAD = "SELECT payload FROM webhook_events WHERE id=?"

_PUT_ENDPOINT = f"""INSERT INTO webhook_endpoints ({_ENDPOINT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET tenant=excluded.tenant, url=excluded.url, events=excluded.events,
secrets=excluded.secrets, state=excluded.state, reason=excluded.reason, description=excluded.description,
is_admin=excluded.is_admin, source=excluded.source, failing_since=excluded.failing_since"""
_DROP_ENDPOINT = "DELETE FROM webhook_endpoints WHERE id=?"
_PUT_EVENT = f"INSERT INTO webhook_events ({_EVENT_COLUMNS}) VALUES (?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING"
_CHANGE_EVENT = "UPDATE webhook_events SET payload=? WHERE id=?"
_DROP_EVENT = "DELETE FROM webhook_events WHERE id=?"
_DROP_DELIVERIES_OF = "DELETE FROM webhook_deliveries WHERE event_id=?"
_PUT_DELIVERY = f"""INSERT INTO webhook_deliveries ({_DELIVERY_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)
ON CONFLICT (event_id, endpoint_id) DO UPDATE SET state=excluded.state, attempts=excluded.attempts,
tries=excluded.tries, next_at=excluded.next_at"""
_DROP_DELIVERY = "DELETE FROM webhook_deliveries WHERE event_id=? AND endpoint_id=?"

_endpoint = attrgetter(*_ENDPOINT_COLUMNS.split(", "))
_event = attrgetter(*_EVENT_COLUMNS.split(", "))
_delivery = attrgetter(*_DELIVERY_COLUMNS.split(", "))


def apply(connection: sqlite3.Connection, change: WebhookChange) -> None:
    """Make a change, within the transaction that is open."""
    match change:
        case EndpointRecord():
            connection.execute(_PUT_ENDPOINT, _endpoint(change))
        case EndpointRemoval(id_):
            connection.execute(_DROP_ENDPOINT, (id_,))
        case EventRecord():
            connection.execute(_PUT_EVENT, _event(change))
        case EventPayload(id_, payload):
            connection.execute(_CHANGE_EVENT, (payload, id_))
        case EventRemoval(id_):
            connection.execute(_DROP_DELIVERIES_OF, (id_,))
            connection.execute(_DROP_EVENT, (id_,))
        case DeliveryRecord():
            connection.execute(_PUT_DELIVERY, _delivery(change))
        case DeliveryRemoval(event_id, endpoint_id):
            connection.execute(_DROP_DELIVERY, (event_id, endpoint_id))
