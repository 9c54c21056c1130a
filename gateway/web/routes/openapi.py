"""The description of the gateway's routes in OpenAPI 3.1, served at /gateway/openapi.json.

Made from `openapi_operations`, and from the table of roles, which alone tells the access of a route.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import version
from typing import Any

from aiohttp import web

from gateway.tenants.roles import Access, Roles
from gateway.web.http.base_path import link_prefix
from gateway.web.http.responses import json
from gateway.web.routes.openapi_operations import OPERATIONS, SCHEMAS
from gateway.web.routes.openapi_parts import PROBLEM, Described

_SECURITY: list[dict[str, list[str]]] = [{"key": []}, {"bearer": []}, {"cookie": []}]
_SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "comfyui_gateway_key"},
}
# What the gate, and what stands before it, may answer to any request that needs a key.
_REFUSALS = {
    401: "No key, or a wrong one",
    403: "The key has another role, or the page that asks is of another origin",
    408: "The body comes too slowly",
    413: "The body is too large",
    429: "A limit of the tenant's, or too many wrong keys; Retry-After says when to come again",
    502: "A backend did not answer",
    503: "Nobody can answer now, or the journal can't be written; Retry-After says when to come again",
}


def shown_path(template: str) -> str:
    """Return a route's template in the form of OpenAPI."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", template)


@cache
def document() -> dict[str, Any]:
    """Return the whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), described in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, described)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "comfyui-gateway",
            "version": version("comfyui-gateway"),
            "summary": "One HTTP endpoint that is a ComfyUI, and behind it a fleet of ComfyUI backends",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": _SCHEMES},
    }


def _operation(method: str, path: str, described: Described) -> dict[str, Any]:
    access = Roles().of_route(method, path)
    is_open = access is Access.ANYBODY
    refusals = {} if is_open else _REFUSALS
    responses = {str(status): {"description": text, "content": PROBLEM} for status, text in refusals.items()}
    if "tenant" in described.parameters:
        responses["404"] = {"description": "An admin named a tenant that nobody knows", "content": PROBLEM}
    responses |= described.responses
    operation: dict[str, Any] = {
        "summary": described.summary,
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
        "description": f"For {access}.",
        "responses": dict(sorted(responses.items())),
        "security": [] if is_open else _SECURITY,
    }
    names = re.findall(r"\{(\w+)\}", path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": described.parameters.get(name, {"type": "string"})}
        for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in described.parameters.items()
        if name not in names
    ]
    parameters += [{"name": name, "in": "header", "schema": schema} for name, schema in described.headers.items()]
    if parameters:
        operation["parameters"] = parameters
    if described.body is not None:
        operation["requestBody"] = {"content": described.body, "required": described.needs_body}
    return operation


async def get_openapi(request: web.Request) -> web.Response:
    """Answer with the description of the gateway's routes. Under a prefix it names the prefix as the server."""
    prefix = link_prefix(request)
    return json({**document(), "servers": [{"url": prefix}]} if prefix else document())
