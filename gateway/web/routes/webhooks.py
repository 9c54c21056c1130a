"""/gateway/api/v1/me/webhooks: an owner's endpoints, their deliveries, replay. An admin may act for a tenant."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.settings.webhooks import BACKEND_EVENTS, JOB_EVENTS, MAX_DESCRIPTION
from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.telemetry.times import iso_or_none
from gateway.tenants.lifetimes import NoTime, time_of
from gateway.web.guard.audit import note
from gateway.web.guard.context import caller, context_of, whose
from gateway.web.http.base_path import shown_path
from gateway.web.http.responses import json, problem
from gateway.web.routes.queue import BadBody, read_object
from gateway.webhooks.model import (
    Attempt,
    DeliveryState,
    Endpoint,
    EndpointState,
    EventType,
    Listed,
    NotFound,
    TooManyEndpoints,
    WebhookRefused,
)
from gateway.webhooks.sender import UNREACHABLE
from gateway.webhooks.service import MAX_PAGE, Webhooks
from gateway.webhooks.urls import BadUrl

PATH = "/gateway/api/v1/me/webhooks"
# The list of all deliveries is no endpoint, so its path has no method of an endpoint's.
_ONE = PATH + "/{id:(?!deliveries$)[^/]+}"
# Maximum number of events in a list, repeated ones included.
MAX_EVENTS = 20
# The last second of 9999, and the maximum characters of a page's `after`.
MAX_TIME, MAX_AFTER = 253_402_300_799, 100
# A part of a URL's path of so many characters may be a token.
_TOKEN = re.compile(r"[^/]{16,}")
_SHOWN_OF_TOKEN = 4
_PRIVATE = {"Cache-Control": "no-store"}
_RETRY = {"Retry-After": "5", **_PRIVATE}


def _answering(handler: Handler) -> Handler:
    """Return a handler that answers for each refusal of the webhooks' service, and for a body that is malformed."""

    @wraps(handler)
    async def answered(request: web.Request) -> web.StreamResponse:
        if not context_of(request).settings.webhooks.enabled:
            details = "set webhooks.enabled in the gateway's configuration"
            return problem(404, "webhooks_off", "This gateway delivers no webhooks", details, _PRIVATE)
        try:
            return await handler(request)
        except (BadBody, NoTime) as error:
            return problem(400, "invalid_body", "The body can't be read", str(error), _PRIVATE)
        except BadUrl as error:
            return problem(400, "invalid_webhook", "No webhook may be delivered there", str(error), _PRIVATE)
        except NotFound:
            path = shown_path(request, PATH)
            details = f"GET {path} lists the endpoints, and {path}/deliveries the events"
            return problem(404, "unknown_webhook", "There is no such endpoint or event", details, _PRIVATE)
        except TooManyEndpoints as error:
            return problem(409, "too_many_webhooks", "This endpoint can't be made", str(error), _PRIVATE)
        except WebhookRefused as error:
            return problem(409, "webhook_refused", "This can't be done with the endpoint", str(error), _PRIVATE)
        except StoreError as error:
            return problem(503, "journal_unavailable", "This is not in the journal yet", str(error), _RETRY)

    return answered


def _service(request: web.Request) -> Webhooks:
    return context_of(request).webhooks


@_answering
async def get_webhooks(request: web.Request) -> web.Response:
    """Answer with the tenant's endpoints, the oldest first."""
    found = _service(request).endpoints(whose(request).tenant)
    return json({"webhooks": [_shown(endpoint) for endpoint in found]}, headers=_PRIVATE)


@_answering
async def post_webhook(request: web.Request) -> web.Response:
    """Make an endpoint: 201, with its secret, which is shown only this once."""
    body = _checked(await read_object(request), "url", "events", "description")
    url, identity = body.get("url"), whose(request)
    if not isinstance(url, str):
        raise BadBody('"url" must be a text')
    events = _events(body, is_admin=identity.is_admin) or ()
    endpoint, secret = await _service(request).create(
        identity.tenant, url, events, _description(body) or "", is_admin=identity.is_admin
    )
    _note(request, Action.WEBHOOK_CREATED, endpoint.id)
    return json({**_shown(endpoint), "secret": secret}, 201, _PRIVATE)


@_answering
async def get_webhook(request: web.Request) -> web.Response:
    """Answer with one endpoint."""
    return json(_shown(_service(request).endpoint(whose(request).tenant, _id(request))), headers=_PRIVATE)


@_answering
async def patch_webhook(request: web.Request) -> web.Response:
    """Change an endpoint's events or description, or enable or disable it."""
    body = _checked(await read_object(request), "events", "description", "state")
    tenant, id_, service = whose(request).tenant, _id(request), _service(request)
    endpoint = service.endpoint(tenant, id_)
    # A user of the same tenant may change an admin's endpoint, and not let it hear of backends.
    events = _events(body, is_admin=endpoint.is_admin and whose(request).is_admin)
    description = _description(body)
    state = body.get("state")
    if state not in (None, *EndpointState):
        raise BadBody(f'"state" must be one of {", ".join(EndpointState)}')
    if events is not None or description is not None:
        endpoint = await service.update(tenant, id_, events=events, description=description)
        _note(request, Action.WEBHOOK_CHANGED, id_)
    if state == EndpointState.DISABLED:
        endpoint = await service.disable(tenant, id_)
        _note(request, Action.WEBHOOK_DISABLED, id_)
    elif state == EndpointState.ENABLED:
        endpoint = await service.enable(tenant, id_)
        _note(request, Action.WEBHOOK_ENABLED, id_)
    return json(_shown(endpoint), headers=_PRIVATE)


@_answering
async def delete_webhook(request: web.Request) -> web.Response:
    """Delete an endpoint and its deliveries."""
    await _service(request).delete(whose(request).tenant, _id(request))
    _note(request, Action.WEBHOOK_DELETED, _id(request))
    return json({"deleted": _id(request)}, headers=_PRIVATE)


@_answering
async def rotate_webhook(request: web.Request) -> web.Response:
    """Give an endpoint a new secret: 200, with the secret, only this once."""
    endpoint, secret = await _service(request).rotate(whose(request).tenant, _id(request))
    _note(request, Action.WEBHOOK_ROTATED, endpoint.id)
    return json({**_shown(endpoint), "secret": secret}, headers=_PRIVATE)


@_answering
async def send_test(request: web.Request) -> web.Response:
    """Send a test event: 202, with its id, before it is delivered. A tenant may send a few a minute."""
    tenant, service = whose(request).tenant, _service(request)
    endpoint = service.endpoint(tenant, _id(request))
    context_of(request).limits.webhook_test(endpoint.tenant, time.monotonic())
    event_id = await service.test(tenant, endpoint.id)
    return json({"event_id": event_id}, 202, _PRIVATE)


@_answering
async def get_deliveries(request: web.Request) -> web.Response:
    """Answer with deliveries to an endpoint, or all of the tenant, the newest event first."""
    query = request.rel_url.query
    try:
        limit = int(query.get("limit", 50))
    except ValueError:
        limit = 0
    state, after = query.get("state") or None, query.get("after") or None
    if not 1 <= limit <= MAX_PAGE or state not in (None, *DeliveryState) or len(after or "") > MAX_AFTER:
        states = ", ".join(DeliveryState)
        details = f"limit is a number from 1 to {MAX_PAGE}, state one of {states}, after the next of the page before"
        return problem(400, "invalid_query", "The query can't be read", details, _PRIVATE)
    endpoint_id = request.match_info.get("id")
    page = _service(request).deliveries(
        whose(request).tenant,
        endpoint_id=endpoint_id,
        state=DeliveryState(state) if state else None,
        after=after,
        limit=limit,
    )
    more = {"next": page.after} if page.after is not None else {}
    return json({"deliveries": [_shown_delivery(each) for each in page.items], **more}, headers=_PRIVATE)


@_answering
async def replay_event(request: web.Request) -> web.Response:
    """Send an event again, under its id, wherever it went before: 202, with the number of deliveries."""
    count = await _service(request).replay_event(whose(request).tenant, request.match_info["event_id"])
    return json({"replayed": count}, 202, _PRIVATE)


@_answering
async def replay_range(request: web.Request) -> web.Response:
    """Send an endpoint the events of a time again: 202, with the number of deliveries."""
    body = _checked(await read_object(request), "since", "until")
    now = time.time()
    if body.get("since") is None:
        raise BadBody('"since" must be a time such as 2026-11-27T22:00:00Z, or seconds since 1970')
    since, until = _time(body["since"], now), _time(body.get("until"), now)
    if until < since:
        raise BadBody('"until" is before "since"')
    count = await _service(request).replay_range(whose(request).tenant, _id(request), since, until)
    return json({"replayed": count}, 202, _PRIVATE)


def _id(request: web.Request) -> str:
    return request.match_info["id"]


def _note(request: web.Request, action: Action, endpoint_id: str) -> None:
    """Write a line of the audit log, which names the endpoint by its id: a URL may hold a token."""
    tenant = whose(request).tenant
    note(request, action, endpoint_id, **({"whose": tenant} if tenant != caller(request).tenant else {}))


def _checked(body: dict[str, Any], *fields: str) -> dict[str, Any]:
    if not body.keys() <= set(fields):
        raise BadBody(f"it has a field that there is not; there are: {', '.join(fields)}")
    return body


def _events(body: dict[str, Any], *, is_admin: bool) -> list[str] | None:
    events = body.get("events")
    if events is None:
        return None
    known = (*JOB_EVENTS, *(BACKEND_EVENTS if is_admin else ()))
    is_list = isinstance(events, list) and 0 < len(events) <= MAX_EVENTS
    if not is_list or not all(isinstance(event, str) and event in known for event in events):
        raise BadBody(f'"events" must be a list of one or more of {", ".join(known)}')
    return list(events)


def _description(body: dict[str, Any]) -> str | None:
    text = body.get("description")
    if text is not None and not (isinstance(text, str) and len(text) <= MAX_DESCRIPTION and text.isprintable()):
        raise BadBody(f'"description" must be a text of one line, at most {MAX_DESCRIPTION} characters')
    return text


def _time(given: Any, now: float) -> float:
    if given is None:
        return now
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= MAX_TIME:
        return float(given)
    # A duration would be one from now on, and events have happened.
    if not isinstance(given, str) or re.fullmatch(r"\s*\d+[smhdw]\s*", given):
        raise BadBody("a time must be such as 2026-11-27T22:00:00Z, or seconds since 1970")
    return time_of(given, now)


def shown_url(url: str) -> str:
    """Return a URL without its query, and without all but the beginning of long parts of its path.

    Both may be tokens, such as those of chats' webhooks.
    """
    parts = urlsplit(url)
    path = _TOKEN.sub(lambda found: f"{found[0][:_SHOWN_OF_TOKEN]}…", parts.path)
    return f"{parts.scheme}://{parts.netloc}{path}{'?…' if parts.query else ''}"


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    now = time.time()
    ends = [each.valid_until for each in endpoint.secrets if each.valid_until is not None and each.valid_until > now]
    return {
        "id": endpoint.id,
        "url": shown_url(endpoint.url),
        "events": [each for each in EventType if each in endpoint.events],
        "description": endpoint.description,
        "state": endpoint.state,
        "reason": endpoint.reason,
        "source": endpoint.source,
        "created_at": iso_or_none(endpoint.created_at),
        "failing_since": iso_or_none(endpoint.failing_since),
        "old_secret_until": iso_or_none(max(ends, default=None)),
    }


def _shown_attempt(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt without the answer. If its address is hidden, so is its time, which tells of ports."""
    is_hidden = attempt.outcome == UNREACHABLE
    return {
        "at": iso_or_none(attempt.at),
        "status": attempt.status,
        "seconds": None if is_hidden else round(attempt.seconds, 3),
        "error": attempt.outcome or None,
    }


def _shown_delivery(listed: Listed) -> dict[str, Any]:
    event, delivery = listed.event, listed.delivery
    return {
        "event_id": event.id,
        "type": event.type,
        "happened_at": iso_or_none(event.happened_at),
        "prompt_id": event.prompt_id,
        "webhook": delivery.endpoint_id or None,
        "state": delivery.state,
        "next_at": iso_or_none(delivery.next_at),
        "attempts": [_shown_attempt(attempt) for attempt in delivery.attempts],
    }


Routes = tuple[tuple[str, str, Callable[[web.Request], Any]], ...]
ROUTES: Routes = (
    ("GET", PATH, get_webhooks),
    ("POST", PATH, post_webhook),
    ("GET", f"{PATH}/deliveries", get_deliveries),
    ("POST", f"{PATH}/events/{{event_id}}/replay", replay_event),
    ("GET", _ONE, get_webhook),
    ("PATCH", _ONE, patch_webhook),
    ("DELETE", _ONE, delete_webhook),
    ("POST", f"{_ONE}/rotate", rotate_webhook),
    ("POST", f"{_ONE}/test", send_test),
    ("GET", f"{_ONE}/deliveries", get_deliveries),
    ("POST", f"{_ONE}/replay", replay_range),
)
