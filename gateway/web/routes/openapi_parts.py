"""Parts of the OpenAPI document that several of its tables use: schemas, responses, the description of a route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": ["string", "null"], "description": "UTC, as 2026-01-31T12:00:00Z"}
ANY: Schema = {}
ID: Schema = {"type": "string", "format": "uuid"}
WHOSE: Schema = {"type": "string", "description": "An admin: as this tenant; of others it is not read"}


def object_of(required: Mapping[str, Schema] | None = None, **optional: Schema) -> Schema:
    """Return the schema of an object: its required members, and its optional ones."""
    properties = {**(required or {}), **optional}
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def list_of(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def ref_to(name: str) -> Schema:
    """Return a reference to one of the named schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(schema: Schema) -> dict[str, Any]:
    """Return the content of a body in JSON."""
    return {"application/json": {"schema": schema}}


def ok(schema: Schema, text: str = "As asked for") -> dict[str, Any]:
    """Return a response in JSON."""
    return {"description": text, "content": json_of(schema)}


PROBLEM = json_of(ref_to("Problem"))


@dataclass(frozen=True, slots=True)
class Described:
    """A route: what it does, its parameters and headers by name, its body by content type, its answers by status."""

    summary: str
    responses: Mapping[str, Any]
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    needs_body: bool = False
    headers: Mapping[str, Schema] = field(default_factory=dict)


def problem(text: str) -> dict[str, Any]:
    """Return the response of a refusal."""
    return {"description": text, "content": PROBLEM}


def nothing(text: str = "Done") -> dict[str, Any]:
    """Return a response without a body."""
    return {"description": text}


BAD = {"400": problem("The body, or the query, is not what it must be")}
