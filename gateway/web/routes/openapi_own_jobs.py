"""Parts of the OpenAPI document about the jobs of an owner: place and ETA of open ones, deletion of ended ones."""

from __future__ import annotations

from typing import Any

from gateway.jobs.events.shown_eta import ETA_HEADER, PLACE_HEADER
from gateway.web.routes.openapi_parts import (
    BAD,
    COUNT,
    NUMBER,
    TEXT,
    WHOSE,
    Described,
    Schema,
    list_of,
    object_of,
    ok,
    problem,
    ref_to,
)

_PLACE: Schema = {"type": "integer", "minimum": 0, "description": "The caller's own jobs that go before it"}
_LOAD: Schema = {"type": "integer", "minimum": 0, "description": "Jobs for each backend, in coarse steps"}
_ETA: Schema = {"oneOf": [ref_to("Eta"), {"type": "null"}], "description": "Null while nothing is known"}
JOB_SCHEMAS: dict[str, Schema] = {
    "Job": object_of(
        {"id": TEXT, "status": TEXT},
        gateway_tenant=TEXT,
        gateway_files=list_of(ref_to("StoredFile")),
        gateway_place=_PLACE,
        gateway_load=_LOAD,
        gateway_eta=_ETA,
    ),
    "Eta": object_of({"seconds": NUMBER, "low": NUMBER, "high": NUMBER}),
    "OpenJob": object_of(
        {
            "prompt_id": TEXT,
            "status": {"enum": ["pending", "in_progress"]},
            "create_time": {"type": "integer", "description": "Milliseconds since 1970"},
            "place": _PLACE,
            "load": _LOAD,
            "eta": _ETA,
        }
    ),
}
ETA_HEADERS: dict[str, Any] = {
    PLACE_HEADER: {"description": "The caller's jobs that go before it, and the load: 2; load=1", "schema": TEXT},
    ETA_HEADER: {
        "description": "Seconds until it is done, and an interval: 42; low=30; high=60. Absent while nothing is known",
        "schema": TEXT,
    },
}
JOB_OPERATIONS: dict[tuple[str, str], Described] = {
    ("GET", "/gateway/api/v1/me/jobs"): Described(
        "The caller's open jobs in the order of acceptance, each with its place and ETA",
        {
            "200": ok(object_of({"jobs": list_of(ref_to("OpenJob"))}, next=TEXT)),
            **BAD,
            "409": problem("The job that `after` names has ended"),
        },
        {"limit": {**COUNT, "minimum": 1, "maximum": 100}, "after": TEXT, "tenant": WHOSE},
    ),
    ("GET", "/gateway/api/v1/me/jobs/{prompt_id}"): Described(
        "Place and ETA of an open job",
        {
            "200": ok(ref_to("OpenJob")),
            "404": problem("The caller has no such open job, or an admin named a tenant that nobody knows"),
        },
        {"tenant": WHOSE},
    ),
    ("DELETE", "/gateway/api/v1/me/jobs/{prompt_id}"): Described(
        "Delete an ended job: its history entry, the names of its files, and the uploads that it named if asked for",
        {
            "200": ok(object_of({"deleted": TEXT, "files": COUNT, "uploads": list_of(TEXT)})),
            "400": problem("uploads is neither true nor false"),
            "404": problem("The caller has no such job, or an admin named a tenant that nobody knows"),
            "409": problem("The job has not ended, or an open job names a file of it"),
        },
        {"uploads": {"enum": ["true", "false"]}, "tenant": WHOSE},
    ),
}
