"""Records of webhooks. Times are milliseconds since 1970. No `repr` shows a URL, a secret or a payload."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """An endpoint. `events` is a JSON list of types, `secrets` one of ``[secret, valid until or null]``."""

    id: str
    tenant: str
    url: str = field(repr=False)
    events: str
    secrets: str = field(repr=False)
    state: str
    reason: str
    description: str
    is_admin: int
    source: str
    created_at: int
    failing_since: int | None


@dataclass(frozen=True, slots=True)
class EndpointRemoval:
    """An endpoint that was deleted. Its deliveries were removed before, because they may be many."""

    id: str


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event. It stays as it was first written. When the store lists events, `payload` is empty; `size` is set."""

    id: str
    tenant: str
    type: str
    prompt_id: str | None
    happened_at: int
    payload: bytes = field(repr=False)
    size: int = 0


@dataclass(frozen=True, slots=True)
class EventPayload:
    """Another payload of an event, because the owner of its job deleted the job."""

    id: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EventRemoval:
    """An event that is kept no more. Its deliveries go with it."""

    id: str


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery, new or changed. `attempts` is a JSON list of ``[time, status or null, seconds, outcome]``.

    `target` is the webhook of the event's prompt, as JSON; None if the delivery goes to an endpoint.
    """

    event_id: str
    endpoint_id: str
    tenant: str
    state: str
    attempts: str
    tries: int
    next_at: int | None
    target: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DeliveryRemoval:
    """A delivery to an endpoint that was deleted. Its event stays."""

    event_id: str
    endpoint_id: str


WebhookChange = (
    EndpointRecord | EndpointRemoval | EventRecord | EventPayload | EventRemoval | DeliveryRecord | DeliveryRemoval
)
