"""The description of the Comfy API v2 in OpenAPI 3.1, served at /api/v2/openapi.json. Plain data."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from gateway.web.v2.labels import MAX_LABELS, MAX_PRIORITY, MAX_TEXT, MAX_VALUE
from gateway.web.v2.listing import MAX_LIMIT
from gateway.web.v2.model import STATUSES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TIME: Schema = {"type": "string", "format": "date-time", "pattern": r"(Z|[+-]\d\d:\d\d)$"}
_URL: Schema = {"type": "string", "format": "uri", "pattern": "^https?://"}
_HASH: Schema = {"type": ["string", "null"], "pattern": "^blake3:[0-9a-f]{64}$"}
_LABELS: Schema = {
    "type": "object",
    "maxProperties": MAX_LABELS,
    "additionalProperties": {"type": "string", "maxLength": MAX_VALUE},
}
_METADATA: Schema = {"anyOf": [{"type": "string", "maxLength": MAX_TEXT}, _LABELS]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PROGRESS = _object(
    {"value": {"type": "number", "minimum": 0, "maximum": 1}, "nodes_done": _COUNT, "nodes_total": _COUNT},
    current_node=_or_null(_TEXT),
    current_node_class=_or_null(_TEXT),
    step=_or_null({"type": "integer"}),
    steps=_or_null({"type": "integer"}),
)
_JOB: Schema = {
    "id": {"type": "string", "format": "uuid"},
    "status": {"enum": list(STATUSES)},
    "created_at": _TIME,
    "started_at": _or_null(_TIME),
    "completed_at": _or_null(_TIME),
    "expires_at": _TIME,
    "queue_position": _or_null({"type": "integer", "minimum": 1}),
    "progress": _or_null(_ref("Progress")),
    "outputs": {"type": "array", "items": _ref("Output")},
    "error": _or_null(_ref("JobError")),
    "metrics": {"type": "object", "additionalProperties": {"type": ["integer", "null"]}},
    "urls": _object({"self": _TEXT, "events": _TEXT, "cancel": _TEXT}),
}
_PRIORITY: Schema = {"type": "integer", "minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY}
SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        {"error": _object({"code": _TEXT, "message": _TEXT, "details": {"type": ["object", "null"]}})},
    ),
    "Progress": _PROGRESS,
    "JobError": _object(
        {"code": _TEXT, "message": _TEXT},
        node_id=_or_null(_TEXT),
        class_type=_or_null(_TEXT),
        traceback=_or_null(_TEXT),
    ),
    "Output": _object(
        {
            "node_id": _TEXT,
            "name": _TEXT,
            "type": {"enum": ["image", "video", "audio", "text", "file", "latent"]},
            "content_type": _TEXT,
            "size_bytes": _COUNT,
            "id": _TEXT,
            "hash": _HASH,
            "url": _URL,
            "url_expires_at": _TIME,
        },
        job_id=_TEXT,
    ),
    "Job": _object(_JOB, metadata=_METADATA, priority=_PRIORITY),
    "ListedJob": _object({**_JOB, "create_time": _TIME, "update_time": _TIME}, metadata=_METADATA, priority=_PRIORITY),
    "JobList": _object(
        {"jobs": {"type": "array", "items": _ref("ListedJob")}, "truncated": {"type": "boolean"}}, next_cursor=_TEXT
    ),
    "NewJob": _object(
        {"workflow": {"type": "object"}},
        extra_data=_object({}, api_key_comfy_org=_TEXT),
        metadata=_METADATA,
        priority=_PRIORITY,
    ),
    "Workflow": _object({"workflow": {"type": "object"}, "format": {"enum": ["api", "save"]}}),
    "Asset": _object(
        {
            "id": _TEXT,
            "hash": _HASH,
            "size_bytes": _COUNT,
            "content_type": _TEXT,
            "created_at": _TIME,
            "url": _URL,
            "url_expires_at": _TIME,
        },
        file_path=_TEXT,
        created_new={"type": "boolean"},
        expires_at=_or_null(_TIME),
        job_id=_TEXT,
    ),
    "NewAssetForm": _object(
        {"file_path": _TEXT, "file": {"type": "string", "format": "binary"}},
        content_type=_TEXT,
        expected_hash=_TEXT,
        expires_in=_COUNT,
        tags={"type": "array", "items": _TEXT},
    ),
    "FromHash": _object({"hash": _TEXT}, file_path=_TEXT, expires_in=_COUNT, tags={"type": "array", "items": _TEXT}),
    "Health": _object({"status": _TEXT}),
}


def _json(schema: Schema, text: str = "As asked for") -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _error(text: str) -> Schema:
    return _json(_ref("Error"), text)


_REFUSALS: dict[str, Schema] = {
    "401": _error("No key, or a wrong one"),
    "403": _error("The role is another, or the page that asks is of another origin"),
    "408": _error("The body comes too slowly"),
    "413": _error("The body is too large"),
    "429": _error("A limit of the tenant's; Retry-After says when to come again"),
    "503": _error("This can't be answered now; Retry-After says when to come again"),
}
_UNKNOWN = {"404": _error("There is nothing of the caller's by this id")}
_JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": _TEXT}
_ASSET_ID = {"name": "asset_id", "in": "path", "required": True, "schema": _TEXT}
_BYTES = {"description": "The bytes", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}


def _header(name: str, text: str) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": _TEXT}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


# An admin names the owner, because two tenants may have the same id.
_OWNER = _query("tenant", {"type": "string", "description": "An admin: as this tenant; of others it is not read"})


def _body(schema: Schema, type_: str = "application/json") -> Schema:
    return {"content": {type_: {"schema": schema}}, "required": True}


def _operation(summary: str, responses: dict[str, Schema], *parameters: Schema, body: Schema | None = None) -> Schema:
    operation: Schema = {
        "summary": summary,
        "responses": dict(sorted({**_REFUSALS, **responses}.items())),
        "security": [{"bearer": []}, {"key": []}],
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = body
    return operation


_LIST_QUERY = (
    _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}),
    _query("cursor", _TEXT),
    _query("status", _TEXT),
    _OWNER,
)
OPERATIONS: dict[tuple[str, str], Schema] = {
    ("POST", "/api/v2/jobs"): _operation(
        "Submit a job",
        {
            "200": _json(_ref("Job"), "With Prefer: wait=N, the job ended in time"),
            "201": _json(_ref("Job"), "Queued"),
            "400": _error("The body or the Idempotency-Key is malformed"),
            "422": _error("The workflow is refused, or the Idempotency-Key was used"),
            "502": _error("No backend took the job"),
        },
        _header("Idempotency-Key", "1 to 255 characters, for one submission"),
        _header("Prefer", "wait=N: wait so many seconds for the job's end"),
        body=_body(_ref("NewJob")),
    ),
    ("GET", "/api/v2/jobs"): _operation(
        "The caller's jobs, the newest first; metadata[NAME]=VALUE filters by labels",
        {
            "200": _json(_ref("JobList")),
            "400": _error("The query is malformed"),
            "404": _error("An admin named a tenant that nobody knows"),
        },
        *_LIST_QUERY,
    ),
    ("GET", "/api/v2/jobs/{job_id}"): _operation("A job", {"200": _json(_ref("Job")), **_UNKNOWN}, _JOB_ID, _OWNER),
    ("GET", "/api/v2/jobs/{job_id}/workflow"): _operation(
        "The graph that ran", {"200": _json(_ref("Workflow")), **_UNKNOWN}, _JOB_ID, _OWNER
    ),
    ("GET", "/api/v2/jobs/{job_id}/events"): _operation(
        "Server-sent events about a job",
        {
            "200": {"description": "status, progress, preview, output", "content": {"text/event-stream": {}}},
            **_UNKNOWN,
        },
        _JOB_ID,
        _OWNER,
    ),
    ("POST", "/api/v2/jobs/{job_id}/cancel"): _operation(
        "Cancel a job", {"200": _json(_ref("Job"), "Canceling, or as it ended"), **_UNKNOWN}, _JOB_ID, _OWNER
    ),
    ("POST", "/api/v2/assets"): _operation(
        "Upload an asset",
        {
            "200": _json(_ref("Asset"), "The caller has these bytes already"),
            "201": _json(_ref("Asset"), "New bytes"),
            "409": _error("expected_hash is not the hash of the bytes"),
            "415": _error("The form is compressed"),
            "422": _error("The form is malformed"),
            "507": _error("There is no room"),
        },
        body=_body(_ref("NewAssetForm"), "multipart/form-data"),
    ),
    ("POST", "/api/v2/assets/from-hash"): _operation(
        "Make an asset of bytes that the caller has",
        {
            "200": _json(_ref("Asset"), "There was one"),
            "201": _json(_ref("Asset"), "A new one"),
            "400": _error("The body is malformed"),
            "404": _error("The caller has no such bytes"),
            "422": _error("A field is missing or malformed"),
            "507": _error("There is no room"),
        },
        body=_body(_ref("FromHash")),
    ),
    ("HEAD", "/api/v2/assets/by-hash/{hash}"): _operation(
        "Tell if the caller has these bytes",
        {"200": {"description": "Yes"}, "404": {"description": "No"}},
        {"name": "hash", "in": "path", "required": True, "schema": _TEXT},
        _OWNER,
    ),
    ("GET", "/api/v2/assets/{asset_id}"): _operation(
        "An upload, or a job's output", {"200": _json(_ref("Asset")), **_UNKNOWN}, _ASSET_ID, _OWNER
    ),
    ("GET", "/api/v2/assets/{asset_id}/content"): _operation(
        "The bytes of an asset",
        {
            "200": _BYTES,
            "206": _BYTES,
            "302": {"description": "With redirect=1, a signed link to a stored output"},
            "304": {"description": "The client has the bytes"},
            "416": _error("The range is beyond the end"),
            **_UNKNOWN,
        },
        _ASSET_ID,
        _OWNER,
        _header("Range", "bytes=FIRST-LAST"),
        _query("redirect", {"enum": ["1"]}),
    ),
    ("DELETE", "/api/v2/assets/{asset_id}"): _operation(
        "Delete an upload",
        {"204": {"description": "Deleted"}, "409": _error("An open job names it"), **_UNKNOWN},
        _ASSET_ID,
        _OWNER,
    ),
    ("GET", "/api/v2/health"): _operation("Tell that the API serves", {"200": _json(_ref("Health"))}),
    ("GET", "/api/v2/openapi.json"): _operation("This description", {"200": _json({"type": "object"})}),
}


@cache
def document() -> dict[str, Any]:
    """Return the whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        name = f"{method.lower()}_{path.removeprefix('/api/v2/')}".translate(str.maketrans("/-{}.", "_____"))
        paths.setdefault(path, {})[method.lower()] = {"operationId": name.strip("_"), **operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Comfy API v2 of comfyui-gateway",
            "version": version("comfyui-gateway"),
            "summary": "Jobs, events and assets over a fleet of ComfyUI backends",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }
