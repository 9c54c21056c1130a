"""The admin API of keys: list, make, rotate and revoke keys while the gateway runs."""

from __future__ import annotations

import heapq
import time
from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.telemetry.times import iso_or_none
from gateway.tenants.keys import Key, Role
from gateway.tenants.lifetimes import NoTime, time_of
from gateway.tenants.stored_keys import KeyRefused, NoSuchKey
from gateway.web.guard.audit import note
from gateway.web.guard.context import context_of
from gateway.web.http.base_path import shown_path
from gateway.web.http.responses import json, problem
from gateway.web.routes.queue import BadBody, read_object

PAGE = 1000
MAX_OVERLAP = 31_536_000
_PRIVATE = {"Cache-Control": "no-store"}
_MADE = ("name", "role", "tenant", "expires")


async def get_keys(request: web.Request) -> web.Response:
    """Answer with at most `limit` keys by name, beginning after `after`. No secret and no whole digest is shown."""
    query = request.rel_url.query
    try:
        limit = int(query.get("limit", PAGE))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE:
        return problem(400, "invalid_query", f"limit must be a number from 1 to {PAGE}", headers=_PRIVATE)
    keys, after = context_of(request).keys, query.get("after", "")
    found = heapq.nsmallest(limit + 1, (key for key in keys.all() if key.name > after), key=lambda key: key.name)
    shown = [{**_shown(key), "shadowed": True} if keys.is_shadowed(key) else _shown(key) for key in found[:limit]]
    more = {"next": found[limit - 1].name} if len(found) > limit else {}
    return json({"keys": shown, **more}, headers=_PRIVATE)


async def post_key(request: web.Request) -> web.Response:
    """Make a key: 201, with its secret, which is shown only this once."""
    try:
        body = _checked(await read_object(request, optional=False), _MADE)
        name, role, tenant = (_text(body, field) for field in ("name", "role", "tenant"))
        if role not in ("", *Role):
            raise BadBody(f'"role" must be one of {", ".join(Role)}')
        expires = time_of(_text(body, "expires"), time.time()) if body.get("expires") is not None else None
    except (BadBody, NoTime) as error:
        return problem(400, "invalid_body", "The body can't be read", str(error), _PRIVATE)
    try:
        key, secret = await context_of(request).keys.make(name, Role(role or Role.USER), tenant, expires)
    except KeyRefused as error:
        return problem(409, "key_refused", "This key can't be made", str(error), _PRIVATE)
    context_of(request).hub.close_ended()
    note(request, Action.KEY_MADE, name, key_role=str(key.identity.role), key_tenant=key.identity.tenant)
    return json({**_shown(key), "key": secret}, 201, _PRIVATE)


async def rotate_key(request: web.Request) -> web.Response:
    """Give a key a new secret: 200, with the secret, only this once. The old one lasts `overlap_seconds` more."""
    name = request.match_info["name"]
    try:
        overlap = _checked(await read_object(request, optional=True), ("overlap_seconds",)).get("overlap_seconds")
        is_number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
        if overlap is not None and not (is_number and 0 <= overlap <= MAX_OVERLAP):
            raise BadBody(f'"overlap_seconds" must be a number from 0 to {MAX_OVERLAP}')
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error), _PRIVATE)
    try:
        key, secret = await context_of(request).keys.rotate(name, overlap)
    except NoSuchKey:
        return _unknown(request, name)
    except KeyRefused as error:
        return problem(409, "key_refused", "This key can't be rotated", str(error), _PRIVATE)
    context_of(request).hub.close_ended()
    note(request, Action.KEY_ROTATED, name, old_until=iso_or_none(key.old_until) or "")
    return json({**_shown(key), "key": secret}, headers=_PRIVATE)


async def delete_key(request: web.Request) -> web.Response:
    """Revoke a key, and close its sockets. Once this is answered, the key is gone after a crash, too."""
    name = request.match_info["name"]
    try:
        key = await context_of(request).keys.revoke(name)
    except NoSuchKey:
        return _unknown(request, name)
    except KeyRefused as error:
        return problem(409, "key_refused", "This key can't be revoked", str(error), _PRIVATE)
    except StoreError as error:
        note(request, Action.KEY_REVOKED, name, str(error))
        return problem(503, "journal_unavailable", "This is not in the journal yet", str(error), {"Retry-After": "5"})
    finally:
        context_of(request).hub.close_ended()
    note(request, Action.KEY_REVOKED, name)
    return json({"revoked": key.name}, headers=_PRIVATE)


def _unknown(request: web.Request, name: str) -> web.Response:
    details = f"GET {shown_path(request, '/gateway/keys')} lists those that there are"
    return problem(404, "unknown_key", f"There is no key '{name}'", details, _PRIVATE)


def _checked(body: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    unknown = [field for field in body if field not in fields]
    if unknown:
        raise BadBody(f"there is no field {json_codec.dumps(unknown[0]).decode()}; there are: {', '.join(fields)}")
    return body


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise BadBody(f'"{field}" must be a text')
    return value or ""


def _shown(key: Key) -> dict[str, Any]:
    shown = {
        "name": key.name,
        "role": str(key.identity.role),
        "tenant": key.identity.tenant,
        "source": str(key.source),
        "digest": f"{key.digest[:8]}…",
        "created": iso_or_none(key.created),
        "expires": iso_or_none(key.expires),
        "last_used": iso_or_none(key.used_at),
    }
    if key.old_until is not None and key.old_until > time.time():
        shown["old_until"] = iso_or_none(key.old_until)
    return shown
