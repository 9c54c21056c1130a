"""Values of webhooks: endpoints, events and deliveries. Pure.

Times are seconds since 1970. No `repr` here shows a URL or a secret, because logs and tracebacks show `repr`.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.settings.webhooks import BACKEND_EVENTS, JOB_EVENTS, TERMINAL_EVENTS

ENDPOINT_PREFIX, EVENT_PREFIX = "we_", "evt_"
# Maximum bytes of an event's body. Standard Webhooks advises 20 KB.
MAX_PAYLOAD = 20_000
# Attempts that a delivery lists, the newest. A delivery that is replayed again and again has more.
MAX_ATTEMPTS_KEPT = 20
# The endpoint of a delivery to a prompt's own webhook.
OF_PROMPT = ""


class EventType(StrEnum):
    """Types of events."""

    JOB_QUEUED = "job.queued"
    JOB_STARTED = "job.started"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    BACKEND_DOWN = "backend.down"
    BACKEND_UP = "backend.up"
    BACKEND_POISONED = "backend.poisoned"
    TEST = "webhook.test"


TERMINAL = frozenset(EventType(each) for each in TERMINAL_EVENTS)
OF_JOBS = frozenset(EventType(each) for each in JOB_EVENTS)
OF_BACKENDS = frozenset(EventType(each) for each in BACKEND_EVENTS)


class EndpointState(StrEnum):
    """State of an endpoint. DISABLED: nothing is sent there."""

    ENABLED = "enabled"
    DISABLED = "disabled"


class Reason(StrEnum):
    """Reason for which an endpoint is disabled: its receiver answered 410, it failed for too long, or its owner.

    DELETED: it is being deleted. The journal alone has such an endpoint.
    """

    NONE = ""
    GONE = "gone"
    FAILING = "failing"
    OWNER = "owner"
    DELETED = "deleted"


class Source(StrEnum):
    """Place where an endpoint was defined."""

    API = "api"
    CONFIG = "config"


class DeliveryState(StrEnum):
    """State of a delivery. DEAD: it is tried no more, unless it is replayed."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class NotFound(Exception):
    """There is no such endpoint or event of this tenant."""


class WebhookRefused(Exception):
    """Refusal of an operation on an endpoint; the text gives the reason, and tells what to do."""


class TooManyEndpoints(WebhookRefused):
    """Refusal of a new endpoint, because the tenant has as many as it may have."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A signing secret (``whsec_…``). It signs until `valid_until`; None: without an end."""

    text: str = field(repr=False)
    valid_until: float | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL that gets events of a tenant. `is_admin`: it may get events of backends.

    `failing_since` is the time of the first failure after the last success; None if the last attempt succeeded.
    """

    id: str
    tenant: str
    url: str = field(repr=False)
    events: frozenset[EventType]
    secrets: tuple[Secret, ...] = field(repr=False)
    created_at: float
    description: str = ""
    is_admin: bool = False
    source: Source = Source.API
    state: EndpointState = EndpointState.ENABLED
    reason: Reason = Reason.NONE
    failing_since: float | None = None

    @property
    def is_enabled(self) -> bool:
        """Return True if events are sent there."""
        return self.state is EndpointState.ENABLED

    def secrets_at(self, now: float) -> tuple[str, ...]:
        """Return the secrets that sign at a time, the newest first."""
        return tuple(each.text for each in self.secrets if each.valid_until is None or now < each.valid_until)

    def wants(self, type_: EventType) -> bool:
        """Return True if the endpoint gets events of a type: a test always, those of backends if it is an admin's."""
        if type_ is EventType.TEST:
            return True
        return type_ in self.events and (self.is_admin or type_ not in OF_BACKENDS)


@dataclass(frozen=True, slots=True)
class Target:
    """Receiver of one prompt's events: `extra_data.webhook`. It signs with its own secret; None: it does not sign."""

    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a tenant. `id` is the ``webhook-id`` of each attempt. `payload` is the body as it is sent.

    An index holds events without their payload: it is empty there, and `size` is its length.
    """

    id: str
    tenant: str
    type: EventType
    happened_at: float
    prompt_id: str | None = None
    payload: bytes = field(default=b"", repr=False)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to deliver. `outcome` is empty for an HTTP answer, else the reason why there is none."""

    at: float
    status: int | None
    seconds: float
    outcome: str = ""

    @property
    def is_success(self) -> bool:
        """Return True if the receiver took the event: any 2xx."""
        return self.status is not None and 200 <= self.status < 300 and not self.outcome


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivery of an event to an endpoint, or to the `target` of its prompt (`endpoint_id` is empty then).

    `tries` counts the attempts since the delivery was made or replayed. The next attempt is at `next_at`, None if
    there is none.
    """

    event_id: str
    endpoint_id: str
    tenant: str
    state: DeliveryState = DeliveryState.PENDING
    attempts: tuple[Attempt, ...] = ()
    tries: int = 0
    next_at: float | None = None
    target: Target | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Return the key of the delivery."""
        return self.event_id, self.endpoint_id

    @property
    def is_pending(self) -> bool:
        """Return True if an attempt is to be made."""
        return self.state is DeliveryState.PENDING


@dataclass(frozen=True, slots=True)
class Listed:
    """A delivery in a list, with its event."""

    delivery: Delivery
    event: Event


@dataclass(frozen=True, slots=True)
class Page:
    """A page of deliveries, the newest event first. `after` asks for the next page; None on the last."""

    items: tuple[Listed, ...]
    after: str | None


def new_endpoint_id() -> str:
    """Return an id for a new endpoint, with 128 random bits."""
    return ENDPOINT_PREFIX + _text(secrets.token_bytes(16))


def config_endpoint_id(name: str) -> str:
    """Return the id of an endpoint of the configuration, which is the same at each start."""
    return ENDPOINT_PREFIX + _text(_digest("endpoint", name))


def new_event_id() -> str:
    """Return an id for an event that happens once, with 128 random bits."""
    return EVENT_PREFIX + _text(secrets.token_bytes(16))


def job_event_id(tenant: str, prompt_id: str, create_time: int, type_: EventType) -> str:
    """Return the id of a job's event. It is made of the job, so that a step that happens twice has one id.

    If the gateway ends between a step and its write to the journal, the next run takes the step again. A receiver that
    was told before drops the repetition by the id.
    """
    return EVENT_PREFIX + _text(_digest("job", tenant, prompt_id, str(create_time), str(type_)))


def _digest(*parts: str) -> bytes:
    text = "\0".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=b"gateway-webhook").digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def event_types(names: Collection[str], *, is_admin: bool) -> frozenset[EventType]:
    """Return the types of an endpoint's events; the terminal ones if no names are given.

    Raises:
        ValueError: a name is unknown, or not for this owner.
    """
    allowed = OF_JOBS | OF_BACKENDS if is_admin else OF_JOBS
    unknown = sorted({str(name) for name in names} - allowed)
    if unknown:
        raise ValueError(f"must be of {', '.join(each for each in EventType if each in allowed)}")
    return frozenset(EventType(name) for name in names) or TERMINAL
