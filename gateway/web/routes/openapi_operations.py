"""Operations of the OpenAPI document: what each route takes and returns, as plain data for `openapi`.

A route of our own that is not here fails a test (tests/security/test_openapi.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_TIME: Schema = {"type": ["string", "null"], "description": "UTC, as 2026-01-31T12:00:00Z"}
_ANY: Schema = {}
_ID: Schema = {"type": "string", "format": "uuid"}
_WHOSE: Schema = {"type": "string", "description": "An admin: as this tenant; of others it is not read"}


def _object(required: Mapping[str, Schema] | None = None, **optional: Schema) -> Schema:
    properties = {**(required or {}), **optional}
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ok(schema: Schema, text: str = "As asked for") -> dict[str, Any]:
    return {"description": text, "content": _json(schema)}


_ERROR = {"type": _TEXT, "message": _TEXT, "details": _TEXT, "extra_info": _object()}
_KEY = {
    "name": _TEXT,
    "role": {"enum": ["user", "admin", "metrics"]},
    "tenant": _TEXT,
    "source": _TEXT,
    "digest": {"type": "string", "description": "The first digits of the key's SHA-256"},
    "created": _TIME,
    "expires": _TIME,
    "last_used": _TIME,
}
SCHEMAS: dict[str, Schema] = {
    "Problem": _object({"error": _object(_ERROR), "node_errors": _object()}),
    "Key": _object(_KEY, old_until=_TIME, shadowed=_FLAG),
    "NewKey": _object({**_KEY, "key": {"type": "string", "description": "The key itself, this once"}}, old_until=_TIME),
    "Backend": _object({"name": _TEXT, "drained": _FLAG}),
    "Differences": _object(
        {
            "name": _TEXT,
            "version": _TEXT,
            "other_versions": _list(_TEXT),
            "missing_classes": {"type": "array", "items": _TEXT, "maxItems": 50},
            "missing_classes_count": _COUNT,
            "missing_choices": {"type": "array", "items": _object({"choice": _TEXT, "input": _TEXT}), "maxItems": 50},
            "missing_choices_count": _COUNT,
        }
    ),
    "Pack": _object(
        {
            "pack": _TEXT,
            "classes": _COUNT,
            "untrusted_classes": _COUNT,
            "untrusted": {"type": "array", "items": _TEXT, "maxItems": 100},
            "backends": _list(_TEXT),
        }
    ),
    "Job": _object({"id": _TEXT, "status": _TEXT}, gateway_tenant=_TEXT),
    "QueueItem": {
        "type": "array",
        "minItems": 5,
        "description": "number, prompt_id, prompt, extra_data, outputs_to_execute",
    },
    "Queue": _object({"queue_running": _list(_ref("QueueItem")), "queue_pending": _list(_ref("QueueItem"))}),
    "HistoryEntry": _object({"prompt": _list(_ANY), "outputs": _object(), "status": _object()}, gateway_tenant=_TEXT),
    "File": _object({"path": _TEXT, "size": _COUNT, "modified": _COUNT, "created": _COUNT}),
}
PROBLEM = _json(_ref("Problem"))
_PAGE = {"text/html": {"schema": _TEXT}}
_PLAIN = {"text/plain": {"schema": _TEXT}}
_BYTES = {"*/*": {"schema": {"type": "string", "format": "binary"}}}


@dataclass(frozen=True, slots=True)
class Described:
    """A route: what it does, its parameters by name, its body by content type, its answers by status."""

    summary: str
    responses: Mapping[str, Any]
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    needs_body: bool = False


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": PROBLEM}


def _nothing(text: str = "Done") -> dict[str, Any]:
    return {"description": text}


_BAD = {"400": _problem("The body, or the query, is not what it must be")}
_WRONG = {"400": {"description": "What is asked for is not well-formed", "content": _json(_object({"error": _TEXT}))}}
_SAVE = {
    "400": {"description": "The name can't be had, or the body is not what it must be"},
    "403": {"description": "The name leads out of the caller's folder, or what stands at every route"},
    "409": {"description": "There is one, and it is not to be overwritten", "content": _PLAIN},
    "507": _problem("There is no room"),
}
_WRITE_HOW = {"overwrite": {"enum": ["true", "false"]}, "full_info": {"enum": ["true", "false"]}}

OPERATIONS: dict[tuple[str, str], Described] = {
    ("GET", "/healthz"): Described("Whether the process serves requests", {"200": _ok(_object({"status": _TEXT}))}),
    ("GET", "/readyz"): Described(
        "Whether it serves, and how many backends are up",
        {
            status: _ok(
                _object({"status": _TEXT, "backends_up": _COUNT, "backends": _COUNT, "journal": _TEXT}),
                text,
            )
            for status, text in (("200", "It serves"), ("503", "It is starting, or stopping"))
        },
    ),
    ("GET", "/metrics"): Described(
        "Everything Prometheus is told", {"200": {"description": "Prometheus' text form", "content": _PLAIN}}
    ),
    ("GET", "/gateway/openapi.json"): Described("This description", {"200": _ok(_object({"openapi": _TEXT}))}),
    ("GET", "/gateway/signin"): Described(
        "The page at which a browser's user gives a key",
        {"200": {"description": "The page", "content": _PAGE}, "303": _nothing("Nobody needs a key here")},
        {"next": _TEXT},
    ),
    ("POST", "/gateway/signin"): Described(
        "The key that was entered, into a cookie",
        {
            "303": _nothing("Signed in"),
            **{
                status: {"description": text, "content": {**_PAGE, **PROBLEM}}
                for status, text in (
                    ("400", "The body is no form"),
                    ("401", "The key is not known"),
                    ("403", "A page of another origin asks"),
                    ("413", "The body is too large"),
                    ("429", "Too many wrong keys"),
                )
            },
        },
        body={"application/x-www-form-urlencoded": {"schema": _object({"key": _TEXT}, next=_TEXT)}},
        needs_body=True,
    ),
    ("POST", "/gateway/signout"): Described(
        "Forget the cookie", {"303": _nothing("Signed out"), "403": _problem("A page of another origin asks")}
    ),
    ("GET", "/gateway/keys"): Described(
        "All keys, by name; never the keys themselves",
        {"200": _ok(_object({"keys": _list(_ref("Key"))}, next=_TEXT)), **_BAD},
        {"limit": {"type": "integer", "minimum": 1, "maximum": 1000}, "after": _TEXT},
    ),
    ("POST", "/gateway/keys"): Described(
        "Make a key",
        {"201": _ok(_ref("NewKey"), "Made"), **_BAD, "409": _problem("The name is taken, or there are enough keys")},
        body=_json(
            _object(
                {"name": _TEXT},
                role={"enum": ["user", "admin", "metrics"]},
                tenant=_TEXT,
                expires={"type": ["string", "null"], "description": "30d, or a time such as 2027-01-31"},
            )
        ),
        needs_body=True,
    ),
    ("POST", "/gateway/keys/{name}/rotate"): Described(
        "Give a key a new secret; the old one holds for a while",
        {
            "200": _ok(_ref("NewKey")),
            **_BAD,
            "404": _problem("There is no such key"),
            "409": _problem("It is a key of the configuration file"),
        },
        body=_json(_object(overlap_seconds={"type": ["number", "null"], "minimum": 0, "maximum": 31_536_000})),
    ),
    ("DELETE", "/gateway/keys/{name}"): Described(
        "Revoke a key",
        {
            "200": _ok(_object({"revoked": _TEXT})),
            "404": _problem("There is no such key"),
            "409": _problem("It is a key of the configuration file"),
        },
    ),
    ("GET", "/gateway/backends"): Described(
        "Every backend and what is known of it",
        {"200": _ok(_object({"backends": _list(_ref("Backend")), "jobs_waiting": _COUNT}))},
    ),
    ("GET", "/gateway/packs"): Described(
        "The packs of custom nodes on shared backends, and the classes of each that are not trusted",
        {
            "200": _ok(
                _object(
                    {
                        "packs": _list(_ref("Pack")),
                        "trusted": _list(_TEXT),
                        "to_trust_all": {"type": "string", "description": "The setting that would trust every pack"},
                        "reviewed_comfyui": {
                            "type": "string",
                            "description": "The version of ComfyUI whose node classes were reviewed",
                        },
                    }
                )
            )
        },
    ),
    ("GET", "/gateway/differences"): Described(
        "The node classes, choices of lists and versions that each backend lacks and another has",
        {"200": _ok(_object({"backends": _list(_ref("Differences"))}))},
    ),
    ("POST", "/gateway/backends/{name}/{action}"): Described(
        "Stop or resume giving work to a backend",
        {"200": _ok(_ref("Backend")), "404": _problem("There is no such backend")},
        {"action": {"enum": ["drain", "resume"]}},
    ),
    # ComfyUI's, as far as they are answered here.
    ("POST", "/prompt"): Described(
        "Accept a prompt",
        {
            "200": _ok(_object({"prompt_id": _TEXT, "number": _NUMBER, "node_errors": _object()}), "Accepted"),
            "400": _problem("It can't run; what is wrong with which node is in node_errors"),
            "409": _problem("Its prompt_id is in use for another prompt"),
        },
        body=_json(
            _object(
                {
                    "prompt": {
                        "type": "object",
                        "additionalProperties": _object({"class_type": _TEXT, "inputs": _object()}),
                    }
                },
                prompt_id=_ID,
                client_id=_TEXT,
                extra_data=_object(deadline_seconds={"type": "number", "exclusiveMinimum": 0}),
                front=_FLAG,
                number=_NUMBER,
            )
        ),
        needs_body=True,
    ),
    ("GET", "/prompt"): Described(
        "How many jobs of the caller are open",
        {"200": _ok(_object({"exec_info": _object({"queue_remaining": _COUNT})}))},
    ),
    ("GET", "/queue"): Described("The caller's open jobs", {"200": _ok(_ref("Queue"))}, {"tenant": _WHOSE}),
    ("POST", "/queue"): Described(
        "Take jobs that the caller sees pending out of the queue",
        {"200": _nothing(), **_BAD},
        {"tenant": _WHOSE},
        _json(_object(delete=_list(_TEXT), clear=_FLAG)),
        needs_body=True,
    ),
    ("POST", "/interrupt"): Described(
        "Interrupt the job named, else the one that the caller sees running",
        {"200": _nothing(), **_BAD},
        {"tenant": _WHOSE},
        _json(_object(prompt_id=_TEXT)),
    ),
    ("GET", "/history"): Described(
        "The caller's ended jobs",
        {"200": _ok({"type": "object", "additionalProperties": _ref("HistoryEntry")}), **_BAD},
        {"max_items": {"type": "integer"}, "offset": {"type": "integer"}, "tenant": _WHOSE},
    ),
    ("GET", "/history/{prompt_id}"): Described(
        "One ended job of the caller's; {} for an id that is not one",
        {"200": _ok({"type": "object", "additionalProperties": _ref("HistoryEntry")})},
        {"tenant": _WHOSE},
    ),
    ("POST", "/history"): Described(
        "Forget entries",
        {"200": _nothing(), **_BAD},
        {"tenant": _WHOSE},
        _json(_object(delete=_list(_TEXT), clear=_FLAG)),
        needs_body=True,
    ),
    ("GET", "/api/jobs"): Described(
        "The caller's jobs, open and ended",
        {"200": _ok(_object({"jobs": _list(_ref("Job")), "pagination": _object()})), **_WRONG},
        {
            "status": _TEXT,
            "workflow_id": _TEXT,
            "sort_by": {"enum": ["created_at", "execution_duration"]},
            "sort_order": {"enum": ["asc", "desc"]},
            "limit": {"type": "integer", "minimum": 1},
            "offset": {"type": "integer"},
            "tenant": _WHOSE,
        },
    ),
    ("GET", "/api/jobs/{job_id}"): Described(
        "One job", {"200": _ok(_ref("Job")), "404": _ok(_object({"error": _ANY}), "No such job")}, {"tenant": _WHOSE}
    ),
    ("POST", "/api/jobs/{job_id}/cancel"): Described(
        "Cancel a job, whatever its state", {"200": _ok(_object({"cancelled": _FLAG}))}, {"tenant": _WHOSE}
    ),
    ("POST", "/api/jobs/cancel"): Described(
        "Cancel several jobs",
        {"200": _ok(_object({"cancelled": _FLAG})), **_WRONG},
        {"tenant": _WHOSE},
        _json(_object({"job_ids": _list(_ID)})),
        needs_body=True,
    ),
    ("GET", "/view"): Described(
        "A file of the caller's",
        {
            "200": {"description": "The file", "content": _BYTES},
            "206": {"description": "A part of it", "content": _BYTES},
            "400": _nothing("That is no file's name"),
            "403": {"description": "The folder leads out of where files are, or what stands at every route"},
            "404": _nothing("There is no such file"),
        },
        {
            "filename": _TEXT,
            "subfolder": _TEXT,
            "type": {"enum": ["input", "output", "temp"]},
            "preview": _TEXT,
            "channel": {"enum": ["rgba", "rgb", "a"]},
            "tenant": _WHOSE,
        },
    ),
    ("GET", "/object_info"): Described("All node classes of the fleet", {"200": _ok(_object()), "304": _nothing()}),
    ("GET", "/object_info/{node_class}"): Described("One node class; {} for none", {"200": _ok(_object())}),
    ("GET", "/system_stats"): Described(
        "All devices of the fleet", {"200": _ok(_object({"system": _object(), "devices": _list(_object())}))}
    ),
    ("GET", "/features"): Described("The flags that all backends share", {"200": _ok(_object())}),
    ("GET", "/users"): Described(
        "Where the web UI's data are, and whether there are any yet", {"200": _ok(_object({"storage": _TEXT}))}
    ),
    ("GET", "/settings"): Described("The web UI's settings", {"200": _ok(_object())}),
    ("POST", "/settings"): Described(
        "Set some of them", {"200": _nothing(), **_BAD, "507": _SAVE["507"]}, body=_json(_object()), needs_body=True
    ),
    ("GET", "/settings/{id}"): Described("One of them; null for none", {"200": _ok(_ANY)}),
    ("POST", "/settings/{id}"): Described(
        "Set one", {"200": _nothing(), **_BAD, "507": _SAVE["507"]}, body=_json(_ANY), needs_body=True
    ),
    ("GET", "/userdata"): Described(
        "The files in a folder",
        {
            "200": _ok(_list(_ANY)),
            **{
                status: {"description": text, "content": {**_PLAIN, **PROBLEM}}
                for status, text in (
                    ("400", "No folder is named"),
                    ("403", "It leads out of the caller's folder, or what stands at every route"),
                    ("404", "There is none"),
                )
            },
        },
        {"dir": _TEXT, **{name: {"enum": ["true", "false"]} for name in ("recurse", "full_info", "split")}},
    ),
    ("GET", "/v2/userdata"): Described(
        "All that is below a folder",
        {
            "200": _ok(_list(_object({"name": _TEXT, "path": _TEXT, "type": {"enum": ["file", "directory"]}}))),
            "400": {"description": "It is no folder", "content": _PLAIN},
            "404": {"description": "There is none", "content": _PLAIN},
        },
        {"path": _TEXT},
    ),
    ("GET", "/userdata/{file}"): Described(
        "A file",
        {
            "200": {"description": "The file", "content": _BYTES},
            "206": {"description": "A part of it", "content": _BYTES},
            "403": _SAVE["403"],
            "404": _nothing("There is none"),
        },
    ),
    ("POST", "/userdata/{file}"): Described(
        "Save a file",
        {"200": _ok({"anyOf": [_TEXT, _ref("File")]}), **_SAVE},
        _WRITE_HOW,
        {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    ),
    ("DELETE", "/userdata/{file}"): Described(
        "Delete a file", {"204": _nothing(), "403": _SAVE["403"], "404": _nothing("There is none")}
    ),
    ("POST", "/userdata/{file}/move/{dest}"): Described(
        "Rename a file",
        {"200": _ok({"anyOf": [_TEXT, _ref("File")]}), **_SAVE, "404": _nothing("There is none")},
        _WRITE_HOW,
    ),
}
