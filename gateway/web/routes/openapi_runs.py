"""Operations of the OpenAPI document: synchronous runs and named workflows."""

from __future__ import annotations

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

_NULL_TEXT: Schema = {"type": ["string", "null"]}
_OUTPUT = {
    "node_id": TEXT,
    "name": TEXT,
    "type": TEXT,
    "content_type": TEXT,
    "size_bytes": COUNT,
    "id": TEXT,
    "hash": _NULL_TEXT,
    "url": TEXT,
    "url_expires_at": TEXT,
    "job_id": TEXT,
}
_STATUS: Schema = {"enum": ["queued", "running", "succeeded", "canceling", "canceled", "failed"]}
_PLACE: dict[str, Schema] = {"node": {"type": ["string", "integer"]}, "title": TEXT, "class_type": TEXT}
_PARAMETER = object_of(
    **_PLACE,
    input=TEXT,
    targets=list_of(object_of({"input": TEXT}, **_PLACE)),
    type={"enum": ["string", "integer", "number", "boolean", "choice", "image"]},
    description=TEXT,
    minimum={"type": "number"},
    maximum={"type": "number"},
    max_length={"type": "integer", "minimum": 1},
    choices=list_of(ANY),
    default=ANY,
    required=FLAG,
    random=FLAG,
)
RUN_SCHEMAS: dict[str, Schema] = {
    "RunResult": object_of(
        {
            "prompt_id": TEXT,
            "status": _STATUS,
            "queue_position": {"type": ["integer", "null"]},
            "outputs": list_of(object_of(_OUTPUT)),
            "error": {"type": ["object", "null"], "description": "In ComfyUI's form; null if the job has not failed"},
            "urls": object_of({"self": TEXT, "job": TEXT, "events": TEXT, "cancel": TEXT}),
        },
        parameters={"type": "object", "description": "The values with which a named workflow runs"},
    ),
    "WorkflowHead": object_of(
        {"name": TEXT, "description": TEXT, "size": COUNT, "created_at": TIME, "updated_at": TIME}
    ),
    "Parameter": _PARAMETER,
    "Workflow": object_of(
        {
            "name": TEXT,
            "description": TEXT,
            "created_at": TIME,
            "updated_at": TIME,
            "parameters": {"type": "object", "additionalProperties": ref_to("Parameter")},
            "schema": {"type": "object", "description": "The JSON Schema of the parameters' values"},
            "graph": {"type": "object"},
        }
    ),
}
_RESULT = json_of(ref_to("RunResult"))
# Any type that a node writes; JSON if Accept names none.
_FILE_OR_RESULT = {"*/*": {"schema": {"type": "string", "format": "binary"}}, **_RESULT}
_ENDED = {
    "200": {
        "description": "The job succeeded: its output as Accept asks for it, else JSON",
        "content": _FILE_OR_RESULT,
    },
    "206": {"description": "A part of the output, with Range", "content": _FILE_OR_RESULT},
    "304": nothing("The client has the output already"),
    "416": problem("The output has no such part"),
    "202": {"description": "The job has not ended; Location tells where its result will be", "content": _RESULT},
    "406": {"description": "The job made nothing that Accept names", "content": _RESULT},
    "409": {"description": "The job was cancelled, or its prompt_id is in use for another prompt", "content": PROBLEM},
    "422": {"description": "The job failed at its graph, or the Idempotency-Key was used", "content": PROBLEM},
    "500": {"description": "The job failed at its backend or at the gateway", "content": PROBLEM},
}
_NO_JOB = {"404": problem("There is no such job or output, or an admin named a tenant that nobody knows")}
_PROMPT: Schema = {"type": "object", "additionalProperties": object_of({"class_type": TEXT, "inputs": object_of()})}
_OPTIONS: dict[str, Schema] = {
    "prompt_id": ID,
    "client_id": TEXT,
    "extra_data": object_of(deadline_seconds={"type": "number", "exclusiveMinimum": 0}),
    "front": FLAG,
    "cancel_on_disconnect": FLAG,
}
_CANCELS: dict[str, Schema] = {"cancel_on_disconnect": {"enum": ["true", "false"]}}
_PATH = "/gateway/workflows"
_UNKNOWN = {"404": problem("There is no such workflow, or an admin named a tenant that nobody knows")}
_REFUSED = {"400": problem("It can't run; ComfyUI's own error, or the parameters that are not valid")}
_VALUES = {
    "type": "object",
    "description": "The values of the parameters by their names, and options",
    "properties": _OPTIONS,
}

RUN_OPERATIONS: dict[tuple[str, str], Described] = {
    ("POST", "/gateway/run"): Described(
        "Run a graph, and answer with its result",
        {**_REFUSED, **_NO_JOB, **_ENDED},
        _CANCELS,
        json_of(object_of({"prompt": _PROMPT}, **_OPTIONS)),
        needs_body=True,
    ),
    ("GET", "/gateway/run/{prompt_id}"): Described(
        "The result of a job, in the same way", {**_NO_JOB, **_ENDED}, {"tenant": WHOSE}
    ),
    ("GET", _PATH): Described(
        "The caller's named workflows",
        {"200": ok(object_of({"workflows": list_of(ref_to("WorkflowHead"))})), **_UNKNOWN},
        {"tenant": WHOSE},
    ),
    ("GET", f"{_PATH}/{{name}}"): Described(
        "A named workflow: its graph, its parameters, and their JSON Schema",
        {"200": ok(ref_to("Workflow")), **_UNKNOWN},
        {"tenant": WHOSE},
    ),
    ("PUT", f"{_PATH}/{{name}}"): Described(
        "Store a named workflow, or replace it",
        {
            "200": ok(ref_to("Workflow"), "Replaced"),
            "201": ok(ref_to("Workflow"), "Stored"),
            **BAD,
            "409": problem("The tenant has as many workflows, or as many bytes, as it may have"),
        },
        {},
        json_of(
            object_of(
                {"graph": _PROMPT},
                parameters={"type": ["object", "null"], "description": "Each as Parameter, by its name"},
                description={"type": ["string", "null"], "maxLength": 500},
            )
        ),
        needs_body=True,
    ),
    ("DELETE", f"{_PATH}/{{name}}"): Described(
        "Delete a named workflow", {"204": nothing(), **_UNKNOWN}, {"tenant": WHOSE}
    ),
    ("POST", f"{_PATH}/{{name}}/run"): Described(
        "Run a named workflow with the values of its parameters",
        {**_REFUSED, **_UNKNOWN, **_ENDED},
        _CANCELS,
        json_of(_VALUES),
    ),
    ("POST", f"{_PATH}/{{name}}/jobs"): Described(
        "Submit a named workflow with the values of its parameters, and do not wait",
        {**_REFUSED, **_UNKNOWN, **_ENDED},
        _CANCELS,
        json_of(_VALUES),
    ),
}
