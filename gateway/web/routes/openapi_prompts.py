"""Operation of the OpenAPI document for POST /prompt."""

from __future__ import annotations

from gateway.jobs.routing.requirements import MAX_LENGTH
from gateway.jobs.state.prompt_requirement import HEADER
from gateway.web.routes.openapi_own_jobs import ETA_HEADERS
from gateway.web.routes.openapi_parts import (
    FLAG,
    ID,
    NUMBER,
    TEXT,
    Described,
    Schema,
    json_of,
    list_of,
    object_of,
    ok,
    problem,
)

_REQUIREMENT: Schema = {
    "type": "string",
    "maxLength": MAX_LENGTH,
    "description": "Conditions on the backend: labels, and amounts of VRAM in GB",
    "examples": ["vram>=24,fast"],
}
PROMPT_OPERATIONS: dict[tuple[str, str], Described] = {
    ("POST", "/prompt"): Described(
        "Accept a prompt",
        {
            "200": {
                **ok(object_of({"prompt_id": TEXT, "number": NUMBER, "node_errors": object_of()}), "Accepted"),
                "headers": ETA_HEADERS,
            },
            "400": problem("It can't run; what is wrong with which node is in node_errors"),
            "409": problem("Its prompt_id is in use for another prompt"),
        },
        body=json_of(
            object_of(
                {
                    "prompt": {
                        "type": "object",
                        "additionalProperties": object_of({"class_type": TEXT, "inputs": object_of()}),
                    }
                },
                prompt_id=ID,
                client_id=TEXT,
                extra_data=object_of(
                    deadline_seconds={"type": "number", "exclusiveMinimum": 0},
                    gateway_priority={"type": "integer", "minimum": 0, "maximum": 9},
                    gateway_require=_REQUIREMENT,
                    webhook=object_of({"url": TEXT}, events=list_of(TEXT), secret=TEXT),
                ),
                front=FLAG,
                number=NUMBER,
            )
        ),
        needs_body=True,
        headers={HEADER: _REQUIREMENT},
    ),
}
