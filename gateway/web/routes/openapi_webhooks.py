"""Operations of the OpenAPI document below /gateway/api/v1/me/webhooks."""

from __future__ import annotations

from gateway.settings.webhooks import BACKEND_EVENTS, JOB_EVENTS, MAX_DESCRIPTION, MAX_URL
from gateway.web.routes.openapi_parts import (
    BAD,
    COUNT,
    TEXT,
    TIME,
    WHOSE,
    Described,
    Schema,
    json_of,
    list_of,
    object_of,
    ok,
    problem,
    ref_to,
)

_PATH = "/gateway/api/v1/me/webhooks"
_EVENTS: Schema = {"type": "array", "items": {"enum": [*JOB_EVENTS, *BACKEND_EVENTS]}, "minItems": 1, "maxItems": 20}
_DESCRIPTION: Schema = {"type": "string", "maxLength": MAX_DESCRIPTION}
_SECRET: Schema = {"type": "string", "description": "whsec_…, this once"}
_MOMENT: Schema = {
    "type": ["string", "number"],
    "description": "As 2026-01-31T12:00:00Z, or seconds since 1970",
}
_ENDPOINT = {
    "id": TEXT,
    "url": {"type": "string", "description": "Without its query and without the end of long parts of its path"},
    "events": list_of(TEXT),
    "description": TEXT,
    "state": {"enum": ["enabled", "disabled"]},
    "reason": {"enum": ["", "gone", "failing", "owner"]},
    "source": {"enum": ["api", "config"]},
    "created_at": TIME,
    "failing_since": TIME,
    "old_secret_until": TIME,
}
WEBHOOK_SCHEMAS: dict[str, Schema] = {
    "Webhook": object_of(_ENDPOINT),
    "NewWebhook": object_of({**_ENDPOINT, "secret": _SECRET}),
    "Delivery": object_of(
        {
            "event_id": TEXT,
            "type": TEXT,
            "happened_at": TIME,
            "prompt_id": {"type": ["string", "null"]},
            "webhook": {"type": ["string", "null"], "description": "The endpoint; null for a prompt's own webhook"},
            "state": {"enum": ["pending", "delivered", "dead"]},
            "next_at": TIME,
            "attempts": list_of(
                object_of(
                    {
                        "at": TIME,
                        "status": {"type": ["integer", "null"]},
                        "seconds": {"type": ["number", "null"]},
                        "error": {"type": ["string", "null"]},
                    }
                )
            ),
        }
    ),
}
_UNKNOWN = {"404": problem("There is no such endpoint or event, or an admin named a tenant that nobody knows")}
_OF_THE_FILE = {"409": problem("It is an endpoint of the configuration file, or it is disabled")}
_PAGED = {
    "state": {"enum": ["pending", "delivered", "dead"]},
    "after": TEXT,
    "limit": {"type": "integer", "minimum": 1, "maximum": 200},
    "tenant": WHOSE,
}
_PAGE = {"200": ok(object_of({"deliveries": list_of(ref_to("Delivery"))}, next=TEXT)), **BAD, **_UNKNOWN}
_REPLAYED = {"202": ok(object_of({"replayed": COUNT}), "They are sent again")}

WEBHOOK_OPERATIONS: dict[tuple[str, str], Described] = {
    ("GET", _PATH): Described(
        "The caller's endpoints, the oldest first; never their secrets",
        {"200": ok(object_of({"webhooks": list_of(ref_to("Webhook"))})), **_UNKNOWN},
        {"tenant": WHOSE},
    ),
    ("POST", _PATH): Described(
        "Make an endpoint",
        {
            "201": ok(ref_to("NewWebhook"), "Made"),
            **BAD,
            **_UNKNOWN,
            "409": problem("The tenant has as many endpoints as it may have"),
        },
        {"tenant": WHOSE},
        json_of(object_of({"url": {"type": "string", "maxLength": MAX_URL}}, events=_EVENTS, description=_DESCRIPTION)),
        needs_body=True,
    ),
    ("GET", f"{_PATH}/{{id}}"): Described(
        "One endpoint", {"200": ok(ref_to("Webhook")), **_UNKNOWN}, {"tenant": WHOSE}
    ),
    ("PATCH", f"{_PATH}/{{id}}"): Described(
        "Change an endpoint's events or description, or enable or disable it",
        {"200": ok(ref_to("Webhook")), **BAD, **_UNKNOWN, **_OF_THE_FILE},
        {"tenant": WHOSE},
        json_of(object_of(events=_EVENTS, description=_DESCRIPTION, state={"enum": ["enabled", "disabled"]})),
        needs_body=True,
    ),
    ("DELETE", f"{_PATH}/{{id}}"): Described(
        "Delete an endpoint and its deliveries",
        {"200": ok(object_of({"deleted": TEXT})), **_UNKNOWN, **_OF_THE_FILE},
        {"tenant": WHOSE},
    ),
    ("POST", f"{_PATH}/{{id}}/rotate"): Described(
        "Give an endpoint a new secret; the old one signs beside it for a while",
        {"200": ok(ref_to("NewWebhook")), **_UNKNOWN, **_OF_THE_FILE},
        {"tenant": WHOSE},
    ),
    ("POST", f"{_PATH}/{{id}}/test"): Described(
        "Send a test event",
        {"202": ok(object_of({"event_id": TEXT}), "It will be delivered"), **_UNKNOWN, **_OF_THE_FILE},
        {"tenant": WHOSE},
    ),
    ("GET", f"{_PATH}/deliveries"): Described(
        "Deliveries to all endpoints and to prompts' own webhooks, the newest event first", _PAGE, _PAGED
    ),
    ("GET", f"{_PATH}/{{id}}/deliveries"): Described("Deliveries to one endpoint", _PAGE, _PAGED),
    ("POST", f"{_PATH}/events/{{event_id}}/replay"): Described(
        "Send an event again, under its id",
        {**_REPLAYED, **_UNKNOWN, **_OF_THE_FILE},
        {"tenant": WHOSE},
    ),
    ("POST", f"{_PATH}/{{id}}/replay"): Described(
        "Send an endpoint the events of a time again",
        {
            **_REPLAYED,
            **BAD,
            **_UNKNOWN,
            "409": problem("The endpoint is disabled, another such replay is under way, or there is no room"),
        },
        {"tenant": WHOSE},
        json_of(object_of({"since": _MOMENT}, until=_MOMENT)),
        needs_body=True,
    ),
}
