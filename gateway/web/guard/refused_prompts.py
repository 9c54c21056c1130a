"""The log line of each refused prompt: who sent it, and at which node and input it failed; never a value of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.comfy import json_codec
from gateway.telemetry import logs
from gateway.web.guard.context import caller
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.request_keys import ACCEPTED, IDENTITY

_log = logs.get("prompts")
# Characters of a name that a line repeats, because a prompt may call its nodes and inputs what it likes.
MAX_NAME = 100
# A longer refusal is logged by its status alone.
MAX_BODY = 1024 * 1024
# The client went away, so nothing was refused.
_GONE = 499


def refusals_logged(handler: Handler) -> Handler:
    """Return the handler of POST /prompt behind its gate, with a log line for each answer that is a refusal."""

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            _note(request, error.status, None)
            raise
        _note(request, response.status, response.body if isinstance(response, web.Response) else None)
        return response

    return answered


def _note(request: web.Request, status: int, body: object) -> None:
    # If the key was refused, write no line, because the audit log has one.
    if status < 400 or status == _GONE or IDENTITY not in request or ACCEPTED in request:
        return
    about = {"request_id": request_id_of(request), "tenant": caller(request).tenant}
    _log.info("prompt_refused", **about, status=status, **reason_of(body))


def reason_of(body: object) -> dict[str, str | int]:
    """Return the reason in a refusal's body: the error, the limit, and the names of the first node that failed."""
    if not isinstance(body, bytes) or len(body) > MAX_BODY:
        return {}
    try:
        told = json_codec.loads(body)
    except json_codec.MalformedJson:
        return {}
    error, nodes = _object(_object(told).get("error")), _object(_object(told).get("node_errors"))
    extra = _object(error.get("extra_info"))
    # The Comfy API v2 has another form.
    nodes = nodes or _object(_object(error.get("details")).get("node_errors"))
    found: dict[str, Any] = {"error": error.get("type", error.get("code")), "limit": extra.get("limit")}
    found |= {name: extra.get(name) for name in ("node_id", "class_type", "pack", "input_name")}
    if nodes:
        node_id, node = next(iter(nodes.items()))
        node = _object(node)
        errors = node.get("errors")
        first = _object(errors[0]) if isinstance(errors, list) and errors else {}
        inner = _object(first.get("extra_info"))
        found |= {"nodes": len(nodes), "node_id": node_id, "node_error": first.get("type")}
        found["class_type"] = node.get("class_type") or found["class_type"]
        found["input_name"] = inner.get("input_name") or found["input_name"]
    return {name: _short(value) for name, value in found.items() if isinstance(value, (str, int))}


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _short(value: str | int) -> str | int:
    return value[:MAX_NAME] if isinstance(value, str) else value
