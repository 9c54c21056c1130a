"""Operations of the OpenAPI document: what each route takes and returns, as plain data for `openapi`.

A route of our own that is not here fails a test (tests/security/test_openapi.py).
"""

from __future__ import annotations

from gateway.jobs.files.sweepable import Verdict
from gateway.web.routes.openapi_own_jobs import JOB_OPERATIONS, JOB_SCHEMAS
from gateway.web.routes.openapi_parts import (
    ANY,
    BAD,
    COUNT,
    FLAG,
    ID,
    PROBLEM,
    TEXT,
    TIME,
    WHOSE,
    Described,
    Schema,
    json_of,
    list_of,
    nothing,
    object_of,
    ok,
    problem,
    ref_to,
)
from gateway.web.routes.openapi_prompts import PROMPT_OPERATIONS
from gateway.web.routes.openapi_routing import MODELS_IN_MEMORY, ROUTING_OPERATIONS, ROUTING_SCHEMAS
from gateway.web.routes.openapi_runs import RUN_OPERATIONS, RUN_SCHEMAS
from gateway.web.routes.openapi_webhooks import WEBHOOK_OPERATIONS, WEBHOOK_SCHEMAS

_ERROR = {"type": TEXT, "message": TEXT, "details": TEXT, "extra_info": object_of()}
_KEY = {
    "name": TEXT,
    "role": {"enum": ["user", "admin", "metrics"]},
    "tenant": TEXT,
    "source": TEXT,
    "digest": {"type": "string", "description": "The first digits of the key's SHA-256"},
    "created": TIME,
    "expires": TIME,
    "last_used": TIME,
}
SCHEMAS: dict[str, Schema] = {
    **(WEBHOOK_SCHEMAS | ROUTING_SCHEMAS | RUN_SCHEMAS | JOB_SCHEMAS),
    "Problem": object_of({"error": object_of(_ERROR), "node_errors": object_of()}),
    "Key": object_of(_KEY, old_until=TIME, shadowed=FLAG),
    "NewKey": object_of(
        {**_KEY, "key": {"type": "string", "description": "The key itself, this once"}}, old_until=TIME
    ),
    "Backend": object_of({"name": TEXT, "drained": FLAG, **MODELS_IN_MEMORY}),
    "Differences": object_of(
        {
            "name": TEXT,
            "version": TEXT,
            "other_versions": list_of(TEXT),
            "missing_classes": {"type": "array", "items": TEXT, "maxItems": 50},
            "missing_classes_count": COUNT,
            "missing_choices": {"type": "array", "items": object_of({"choice": TEXT, "input": TEXT}), "maxItems": 50},
            "missing_choices_count": COUNT,
        }
    ),
    "PoisonousGraph": object_of(dict.fromkeys(("id", "tenant", "digest", "state", "since", "until", "error"), TEXT)),
    "Pack": object_of(
        {
            "pack": TEXT,
            "classes": COUNT,
            "untrusted_classes": COUNT,
            "untrusted": {"type": "array", "items": TEXT, "maxItems": 100},
            "backends": list_of(TEXT),
        }
    ),
    "QueueItem": {
        "type": "array",
        "minItems": 5,
        "description": "number, prompt_id, prompt, extra_data, outputs_to_execute",
    },
    "Queue": object_of({"queue_running": list_of(ref_to("QueueItem")), "queue_pending": list_of(ref_to("QueueItem"))}),
    "HistoryEntry": object_of(
        {"prompt": list_of(ANY), "outputs": object_of(), "status": object_of()},
        gateway_tenant=TEXT,
        gateway_files=list_of(ref_to("StoredFile")),
    ),
    "StoredFile": object_of(
        {
            "filename": TEXT,
            "subfolder": TEXT,
            "type": {"enum": ["output", "temp"]},
            "size": COUNT,
            "blake3": {"type": "string", "description": "Of the file that /view gives, in hexadecimal"},
            "url": {"type": ["string", "null"], "description": "A signed URL, for anybody"},
            "expires_at": {"type": ["integer", "null"], "description": "Seconds since 1970"},
        },
        stripped={"type": "boolean", "description": "True if the URL leads to a copy without metadata"},
    ),
    "Upload": object_of(
        {
            "name": TEXT,
            "subfolder": TEXT,
            "type": {"enum": ["input", "output", "temp"]},
            "bytes": COUNT,
            "uploaded_at": {"type": ["integer", "null"], "description": "Milliseconds since 1970"},
            "used_at": {"type": ["integer", "null"], "description": "Milliseconds since 1970"},
        }
    ),
    "SeenFile": object_of(
        {
            "type": {"enum": ["input", "output", "temp"]},
            "subfolder": TEXT,
            "filename": TEXT,
            "size": COUNT,
            "mtime_ns": {"type": "integer", "minimum": 0, "description": "Nanoseconds since 1970"},
        }
    ),
    "File": object_of({"path": TEXT, "size": COUNT, "modified": COUNT, "created": COUNT}),
}
_PAGE = {"text/html": {"schema": TEXT}}
_PLAIN = {"text/plain": {"schema": TEXT}}
_OPEN_METRICS = {"application/openmetrics-text": {"schema": TEXT}}
_BYTES = {"*/*": {"schema": {"type": "string", "format": "binary"}}}


_WRONG = {
    "400": {"description": "What is asked for is not well-formed", "content": json_of(object_of({"error": TEXT}))}
}
_SAVE = {
    "400": {"description": "The name can't be had, or the body is not what it must be"},
    "403": {"description": "The name leads out of the caller's folder, or what stands at every route"},
    "409": {"description": "There is one, and it is not to be overwritten", "content": _PLAIN},
    "507": problem("There is no room"),
}
_WRITE_HOW = {"overwrite": {"enum": ["true", "false"]}, "full_info": {"enum": ["true", "false"]}}

OPERATIONS: dict[tuple[str, str], Described] = {
    ("GET", "/healthz"): Described("Whether the process serves requests", {"200": ok(object_of({"status": TEXT}))}),
    ("GET", "/readyz"): Described(
        "Whether it serves, and how many backends are up",
        {
            status: ok(
                object_of({"status": TEXT, "backends_up": COUNT, "backends": COUNT, "journal": TEXT}),
                text,
            )
            for status, text in (("200", "It serves"), ("503", "It is starting, or stopping"))
        },
    ),
    ("GET", "/metrics"): Described(
        "Everything Prometheus is told",
        {"200": {"description": "Prometheus' text form, or OpenMetrics", "content": {**_PLAIN, **_OPEN_METRICS}}},
    ),
    ("GET", "/gateway/openapi.json"): Described("This description", {"200": ok(object_of({"openapi": TEXT}))}),
    ("GET", "/gateway/signin"): Described(
        "The page at which a browser's user gives a key",
        {"200": {"description": "The page", "content": _PAGE}, "303": nothing("Nobody needs a key here")},
        {"next": TEXT},
    ),
    ("POST", "/gateway/signin"): Described(
        "The key that was entered, into a cookie",
        {
            "303": nothing("Signed in"),
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
        body={"application/x-www-form-urlencoded": {"schema": object_of({"key": TEXT}, next=TEXT)}},
        needs_body=True,
    ),
    ("POST", "/gateway/signout"): Described(
        "Forget the cookie", {"303": nothing("Signed out"), "403": problem("A page of another origin asks")}
    ),
    ("GET", "/gateway/keys"): Described(
        "All keys, by name; never the keys themselves",
        {"200": ok(object_of({"keys": list_of(ref_to("Key"))}, next=TEXT)), **BAD},
        {"limit": {"type": "integer", "minimum": 1, "maximum": 1000}, "after": TEXT},
    ),
    ("POST", "/gateway/keys"): Described(
        "Make a key",
        {"201": ok(ref_to("NewKey"), "Made"), **BAD, "409": problem("The name is taken, or there are enough keys")},
        body=json_of(
            object_of(
                {"name": TEXT},
                role={"enum": ["user", "admin", "metrics"]},
                tenant=TEXT,
                expires={"type": ["string", "null"], "description": "30d, or a time such as 2027-01-31"},
            )
        ),
        needs_body=True,
    ),
    ("POST", "/gateway/keys/{name}/rotate"): Described(
        "Give a key a new secret; the old one holds for a while",
        {
            "200": ok(ref_to("NewKey")),
            **BAD,
            "404": problem("There is no such key"),
            "409": problem("It is a key of the configuration file"),
        },
        body=json_of(object_of(overlap_seconds={"type": ["number", "null"], "minimum": 0, "maximum": 31_536_000})),
    ),
    ("DELETE", "/gateway/keys/{name}"): Described(
        "Revoke a key",
        {
            "200": ok(object_of({"revoked": TEXT})),
            "404": problem("There is no such key"),
            "409": problem("It is a key of the configuration file"),
        },
    ),
    ("GET", "/gateway/backends"): Described(
        "Every backend and what is known of it",
        {"200": ok(object_of({"backends": list_of(ref_to("Backend")), "jobs_waiting": COUNT}))},
    ),
    ("GET", "/gateway/poisonous"): Described(
        "The graphs that are refused because they left a GPU unusable",
        {"200": ok(object_of({"graphs": list_of(ref_to("PoisonousGraph"))}))},
    ),
    ("DELETE", "/gateway/poisonous/{id}"): Described(
        "Forget such a graph, so that it runs again",
        {"200": ok(object_of({"forgotten": TEXT})), "404": problem("There is no such graph")},
    ),
    ("GET", "/gateway/packs"): Described(
        "The packs of custom nodes on shared backends, and the classes of each that are not trusted",
        {
            "200": ok(
                object_of(
                    {
                        "packs": list_of(ref_to("Pack")),
                        "trusted": list_of(TEXT),
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
        {"200": ok(object_of({"backends": list_of(ref_to("Differences"))}))},
    ),
    ("POST", "/gateway/backends/{name}/{action}"): Described(
        "Stop or resume giving work to a backend",
        {"200": ok(ref_to("Backend")), "404": problem("There is no such backend")},
        {"action": {"enum": ["drain", "resume"]}},
    ),
    ("POST", "/gateway/api/v1/backends/{name}/sweep"): Described(
        "Judge which files in a backend's folders may be deleted there",
        {
            "200": ok(object_of({"verdicts": list_of({"enum": [str(verdict) for verdict in Verdict]})})),
            **BAD,
            "404": problem("There is no such backend"),
        },
        body=json_of(object_of({"files": {**list_of(ref_to("SeenFile")), "maxItems": 1000}}, delete=FLAG)),
        needs_body=True,
    ),
    ("GET", "/gateway/api/v1/me/uploads"): Described(
        "The caller's uploads, by type, folder and name",
        {"200": ok(object_of({"uploads": list_of(ref_to("Upload"))}, next=TEXT)), **BAD},
        {"limit": {"type": "integer", "minimum": 1, "maximum": 1000}, "after": TEXT, "tenant": WHOSE},
    ),
    ("DELETE", "/gateway/api/v1/me/uploads"): Described(
        "Delete an upload",
        {
            "200": ok(object_of({"deleted": object_of({"name": TEXT, "subfolder": TEXT, "type": TEXT})})),
            "400": problem("The query names no upload"),
            "404": problem("The caller has no such upload, or an admin named a tenant that nobody knows"),
            "409": problem("An open job names it"),
        },
        {"filename": TEXT, "subfolder": TEXT, "type": {"enum": ["input", "output", "temp"]}, "tenant": WHOSE},
    ),
    ("GET", "/gateway/stored/{tenant}/{job}/{name}"): Described(
        "A stored file, for anybody who has a signed link",
        {
            "200": {"description": "The file, or with Range a part of it (206)", "content": _BYTES},
            "403": problem("The link has expired, or is not one that the gateway signed"),
            "404": problem("The file was deleted"),
            "503": problem("Object storage can't give it now; Retry-After says when to come again"),
        },
        {"expires": {"type": "integer", "description": "Seconds since 1970"}, "signature": TEXT},
    ),
    **(WEBHOOK_OPERATIONS | ROUTING_OPERATIONS | RUN_OPERATIONS | JOB_OPERATIONS),
    # ComfyUI's, as far as they are answered here.
    **PROMPT_OPERATIONS,
    ("GET", "/prompt"): Described(
        "How many jobs of the caller are open",
        {"200": ok(object_of({"exec_info": object_of({"queue_remaining": COUNT})}))},
    ),
    ("GET", "/queue"): Described("The caller's open jobs", {"200": ok(ref_to("Queue"))}, {"tenant": WHOSE}),
    ("POST", "/queue"): Described(
        "Take jobs that the caller sees pending out of the queue",
        {"200": nothing(), **BAD},
        {"tenant": WHOSE},
        json_of(object_of(delete=list_of(TEXT), clear=FLAG)),
        needs_body=True,
    ),
    ("POST", "/interrupt"): Described(
        "Interrupt the job named, else the one that the caller sees running",
        {"200": nothing(), **BAD},
        {"tenant": WHOSE},
        json_of(object_of(prompt_id=TEXT)),
    ),
    ("GET", "/history"): Described(
        "The caller's ended jobs",
        {"200": ok({"type": "object", "additionalProperties": ref_to("HistoryEntry")}), **BAD},
        {"max_items": {"type": "integer"}, "offset": {"type": "integer"}, "tenant": WHOSE},
    ),
    ("GET", "/history/{prompt_id}"): Described(
        "One ended job of the caller's; {} for an id that is not one",
        {"200": ok({"type": "object", "additionalProperties": ref_to("HistoryEntry")})},
        {"tenant": WHOSE},
    ),
    ("POST", "/history"): Described(
        "Forget entries",
        {"200": nothing(), **BAD},
        {"tenant": WHOSE},
        json_of(object_of(delete=list_of(TEXT), clear=FLAG)),
        needs_body=True,
    ),
    ("GET", "/api/jobs"): Described(
        "The caller's jobs, open and ended",
        {"200": ok(object_of({"jobs": list_of(ref_to("Job")), "pagination": object_of()})), **_WRONG},
        {
            "status": TEXT,
            "workflow_id": TEXT,
            "sort_by": {"enum": ["created_at", "execution_duration"]},
            "sort_order": {"enum": ["asc", "desc"]},
            "limit": {"type": "integer", "minimum": 1},
            "offset": {"type": "integer"},
            "tenant": WHOSE,
        },
    ),
    ("GET", "/api/jobs/{job_id}"): Described(
        "One job", {"200": ok(ref_to("Job")), "404": ok(object_of({"error": ANY}), "No such job")}, {"tenant": WHOSE}
    ),
    ("POST", "/api/jobs/{job_id}/cancel"): Described(
        "Cancel a job, whatever its state", {"200": ok(object_of({"cancelled": FLAG}))}, {"tenant": WHOSE}
    ),
    ("POST", "/api/jobs/cancel"): Described(
        "Cancel several jobs",
        {"200": ok(object_of({"cancelled": FLAG})), **_WRONG},
        {"tenant": WHOSE},
        json_of(object_of({"job_ids": list_of(ID)})),
        needs_body=True,
    ),
    ("GET", "/view"): Described(
        "A file of the caller's",
        {
            "200": {"description": "The file", "content": _BYTES},
            "206": {"description": "A part of it", "content": _BYTES},
            "302": nothing("A signed URL of the stored file is in Location"),
            "400": nothing("That is no file's name"),
            "403": {"description": "The folder leads out of where files are, or what stands at every route"},
            "404": nothing("There is no such file"),
        },
        {
            "filename": TEXT,
            "subfolder": TEXT,
            "type": {"enum": ["input", "output", "temp"]},
            "preview": TEXT,
            "redirect": {"enum": ["1"], "description": "Go to a signed URL, if there is one (storage.links)"},
            "channel": {"enum": ["rgba", "rgb", "a"]},
            "tenant": WHOSE,
        },
    ),
    ("GET", "/object_info"): Described("All node classes of the fleet", {"200": ok(object_of()), "304": nothing()}),
    ("GET", "/object_info/{node_class}"): Described("One node class; {} for none", {"200": ok(object_of())}),
    ("GET", "/system_stats"): Described(
        "All devices of the fleet", {"200": ok(object_of({"system": object_of(), "devices": list_of(object_of())}))}
    ),
    ("GET", "/features"): Described("The flags that all backends share", {"200": ok(object_of())}),
    ("GET", "/users"): Described(
        "Where the web UI's data are, and whether there are any yet", {"200": ok(object_of({"storage": TEXT}))}
    ),
    ("GET", "/settings"): Described("The web UI's settings", {"200": ok(object_of())}),
    ("POST", "/settings"): Described(
        "Set some of them", {"200": nothing(), **BAD, "507": _SAVE["507"]}, body=json_of(object_of()), needs_body=True
    ),
    ("GET", "/settings/{id}"): Described("One of them; null for none", {"200": ok(ANY)}),
    ("POST", "/settings/{id}"): Described(
        "Set one", {"200": nothing(), **BAD, "507": _SAVE["507"]}, body=json_of(ANY), needs_body=True
    ),
    ("GET", "/userdata"): Described(
        "The files in a folder",
        {
            "200": ok(list_of(ANY)),
            **{
                status: {"description": text, "content": {**_PLAIN, **PROBLEM}}
                for status, text in (
                    ("400", "No folder is named"),
                    ("403", "It leads out of the caller's folder, or what stands at every route"),
                    ("404", "There is none"),
                )
            },
        },
        {"dir": TEXT, **{name: {"enum": ["true", "false"]} for name in ("recurse", "full_info", "split")}},
    ),
    ("GET", "/v2/userdata"): Described(
        "All that is below a folder",
        {
            "200": ok(list_of(object_of({"name": TEXT, "path": TEXT, "type": {"enum": ["file", "directory"]}}))),
            "400": {"description": "It is no folder", "content": _PLAIN},
            "404": {"description": "There is none", "content": _PLAIN},
        },
        {"path": TEXT},
    ),
    ("GET", "/userdata/{file}"): Described(
        "A file",
        {
            "200": {"description": "The file", "content": _BYTES},
            "206": {"description": "A part of it", "content": _BYTES},
            "403": _SAVE["403"],
            "404": nothing("There is none"),
        },
    ),
    ("POST", "/userdata/{file}"): Described(
        "Save a file",
        {"200": ok({"anyOf": [TEXT, ref_to("File")]}), **_SAVE},
        _WRITE_HOW,
        {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    ),
    ("DELETE", "/userdata/{file}"): Described(
        "Delete a file", {"204": nothing(), "403": _SAVE["403"], "404": nothing("There is none")}
    ),
    ("POST", "/userdata/{file}/move/{dest}"): Described(
        "Rename a file",
        {"200": ok({"anyOf": [TEXT, ref_to("File")]}), **_SAVE, "404": nothing("There is none")},
        _WRITE_HOW,
    ),
}
