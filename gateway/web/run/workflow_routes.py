"""/gateway/workflows: a tenant's named workflows, and their runs."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.jobs.state.prompt_bounds import Bounds, Rejection, check_graph, is_graph, is_web_workflow, web_workflow
from gateway.settings import DispatchSettings
from gateway.store.protocol import StoreError
from gateway.store.workflow_records import WorkflowHead
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import note
from gateway.web.guard.context import caller, context_of, policy, whose
from gateway.web.http.base_path import shown_path
from gateway.web.http.request_body import read_json
from gateway.web.http.responses import json, json_bytes, problem
from gateway.web.http.v2_errors import V2Error
from gateway.web.run.running import Run, run, seconds_of
from gateway.web.v2.submitting import resolved
from gateway.workflows.detection import find_parameters
from gateway.workflows.model import MAX_DESCRIPTION, NAME, RESERVED, Parameter
from gateway.workflows.reading import BadParameter, Describe, read_parameters
from gateway.workflows.service import TooManyWorkflows, Workflow
from gateway.workflows.values import BadValues, Wrong, fill, given_as, schema_of, values_for

PATH = "/gateway/workflows"
# Bytes and values of the body of a run.
MAX_BODY, MAX_VALUES = 2**20, 12_000
_FIELDS = ("graph", "parameters", "description")
_PRIVATE = {"Cache-Control": "no-store"}
# The journal's texts can't hold these.
_SURROGATES = re.compile("[\ud800-\udfff]")
_RETRY = {"Retry-After": "5", **_PRIVATE}


class UnknownWorkflow(Exception):
    """The tenant has no workflow of the name in the request."""


class BadWorkflow(Exception):
    """Refusal of the body of a PUT; the text gives the reason."""


def _answering(handler: Handler) -> Handler:
    """Return a handler that answers for each refusal of a workflow."""

    @wraps(handler)
    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Rejection as rejection:
            return json_bytes(json_codec.dumps_exact(rejection.body), rejection.status, _PRIVATE)
        except BadParameter as error:
            more = {"parameter": error.name[:64]}
            return problem(400, "invalid_parameters", "A parameter is not valid", str(error), _PRIVATE, **more)
        except BadWorkflow as error:
            return problem(400, "invalid_workflow", "The workflow is not valid", str(error), _PRIVATE)
        except json_codec.MalformedJson as error:
            return problem(400, "invalid_json", "The body is not JSON", str(error), _PRIVATE)
        except TooManyWorkflows as error:
            return problem(409, "too_many_workflows", "This workflow can't be stored", str(error), _PRIVATE)
        except StoreError as error:
            return problem(503, "journal_unavailable", "This is not in the journal yet", str(error), _RETRY)

    return answered


# -- storing -------------------------------------------------------------------------------------------------------


@_answering
async def get_workflows(request: web.Request) -> web.Response:
    """Answer with the tenant's workflows by their names."""
    found = context_of(request).workflows.of(whose(request).tenant)
    return json({"workflows": [_head(each) for each in found]}, headers=_PRIVATE)


@_answering
async def get_workflow(request: web.Request) -> web.Response:
    """Answer with one workflow: its graph, its parameters, and their JSON Schema."""
    workflow = await _named(request, whose(request).tenant)
    return _unknown(request) if workflow is None else _shown(workflow, 200)


@_answering
async def put_workflow(request: web.Request) -> web.Response:
    """Store a workflow: 201 if there was none of this name, else 200."""
    gateway, tenant, name = context_of(request), caller(request).tenant, request.match_info["name"]
    if NAME.fullmatch(name) is None:
        raise BadWorkflow("a name has 1 to 64 letters, digits and _ . -, the first a letter or digit")
    dispatch, maximum = gateway.settings.dispatch, gateway.settings.workflows.max_size
    with gateway.limits.body(tenant) as grow:
        try:
            body = await read_json(request, maximum, grow)
        except web.HTTPRequestEntityTooLarge as error:
            details = f"{error.text}; a workflow may have workflows.max_size, and any body server.max_body"
            return problem(413, "body_too_large", "The workflow is too large", details, _PRIVATE, limit="max_size")
        value, encode = _parsed(body, dispatch.max_depth, dispatch.max_graph_values)
    graph, fields = _split(value)
    check_graph(graph, _bounds(dispatch))
    if not graph:
        raise BadWorkflow("the graph has no nodes")
    describe = await _describe(request)
    # A turn for others between long steps.
    await asyncio.sleep(0)
    if fields.get("parameters") is None:
        parameters = find_parameters(graph, describe)
    else:
        parameters = read_parameters(graph, fields["parameters"], describe)
    workflow, is_new = await gateway.workflows.put(tenant, name, encode(graph), parameters, _description(fields))
    note(request, Action.WORKFLOW_STORED, name)
    return _shown(workflow, 201 if is_new else 200)


@_answering
async def delete_workflow(request: web.Request) -> web.Response:
    """Delete a workflow. Jobs of it run on."""
    tenant, name = whose(request).tenant, request.match_info["name"]
    if not await context_of(request).workflows.delete(tenant, name):
        return _unknown(request)
    note(request, Action.WORKFLOW_DELETED, name, **({"whose": tenant} if tenant != caller(request).tenant else {}))
    return web.Response(status=204, headers=_PRIVATE)


def _parsed(body: bytes, depth: int, values: int) -> tuple[Any, Callable[[Any], bytes]]:
    """Parse a body.

    Raises:
        MalformedJson, Rejection: it is no JSON, or too large.
    """
    try:
        return json_codec.read_bounded(body, depth, values)
    except json_codec.TooMuchJson as error:
        raise Rejection(400, error_body("graph_too_large", "The graph is too large", str(error))) from error


def _split(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the graph in a body, and the fields beside it; a body may be a graph alone.

    Raises:
        BadWorkflow, Rejection: there is no graph, or it is in the web UI's own form.
    """
    if not isinstance(value, dict):
        raise BadWorkflow("the body must be a JSON object: a graph in API format, or one with a graph under 'graph'")
    if is_web_workflow(value):
        raise web_workflow()
    if is_graph(value):
        return value, {}
    unknown = [each for each in value if each not in _FIELDS]
    if unknown or not isinstance(value.get("graph"), dict):
        shown = given_as(unknown or value.get("graph"))
        raise BadWorkflow(f"{shown} was given; the fields are {', '.join(_FIELDS)}, and 'graph' is one in API format")
    return value["graph"], value


def _bounds(dispatch: DispatchSettings) -> Bounds:
    return Bounds(
        dispatch.max_nodes,
        dispatch.max_depth,
        dispatch.max_graph_values,
        dispatch.max_body_values,
        dispatch.max_outputs,
        dispatch.max_prompt_bytes,
    )


def _description(fields: Mapping[str, Any]) -> str:
    given = fields.get("description")
    if given is None:
        return ""
    if not isinstance(given, str) or len(given) > MAX_DESCRIPTION:
        raise BadWorkflow(f"'description' must be a string of at most {MAX_DESCRIPTION} characters")
    if _SURROGATES.search(given):
        raise BadWorkflow("'description' has half a surrogate pair, which is no text")
    return given


async def _describe(request: web.Request) -> Describe:
    """Return a function that tells how the fleet describes a node class that the caller may use."""
    merged = await context_of(request).catalogue.seen_by(policy(request))
    return (lambda _: None) if merged is None else merged.classes.get


async def _named(request: web.Request, tenant: str) -> Workflow | None:
    return await context_of(request).workflows.get(tenant, request.match_info["name"])


def _unknown(request: web.Request) -> web.Response:
    details = f"GET {shown_path(request, PATH)} lists them"
    return problem(404, "unknown_workflow", "There is no such workflow", details, _PRIVATE)


def _head(head: WorkflowHead) -> dict[str, Any]:
    return {
        "name": head.name,
        "description": head.description,
        "size": head.size,
        "created_at": _iso(head.created_at),
        "updated_at": _iso(head.updated_at),
    }


def _shown(workflow: Workflow, status: int) -> web.Response:
    graph = json_codec.loads(workflow.graph)
    shown = {
        "name": workflow.name,
        "description": workflow.description,
        "created_at": _iso(workflow.created_at),
        "updated_at": _iso(workflow.updated_at),
        "parameters": {each.name: each.shown() for each in workflow.parameters},
        "schema": schema_of(graph, workflow.parameters),
        "graph": graph,
    }
    return json_bytes(json_codec.dumps_exact(shown), status, _PRIVATE)


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- running -------------------------------------------------------------------------------------------------------


@_answering
async def post_workflow_run(request: web.Request) -> web.StreamResponse:
    """Run a workflow with the values in the body, and answer as POST /gateway/run does."""
    return await _run(request, seconds_of(request))


@_answering
async def post_workflow_job(request: web.Request) -> web.StreamResponse:
    """Submit a workflow with the values in the body: 202, with the link to its result."""
    return await _run(request, 0.0)


async def _run(request: web.Request, seconds: float) -> web.StreamResponse:
    try:
        return await run(request, partial(_prepare, request), seconds=seconds)
    except UnknownWorkflow:
        return _unknown(request)
    except BadValues as error:
        message = "The values of the parameters are not valid"
        return problem(400, "invalid_parameters", message, str(error), _PRIVATE, parameters=error.shown())


async def _prepare(request: web.Request, grow: Callable[[int], None]) -> Run:
    """Return the run of a workflow with the values of a request.

    Nothing else holds the workflow, because a job may run for long.

    Raises:
        UnknownWorkflow: the tenant has none of this name.
        BadValues: a value does not fit.
        MalformedJson, Rejection: the body can't be read.
    """
    dispatch = context_of(request).settings.dispatch
    body = await read_json(request, MAX_BODY, grow)
    given, encode = _parsed(body, dispatch.max_depth, MAX_VALUES) if body.strip() else ({}, json_codec.dumps)
    if not isinstance(given, dict):
        details = "it must be a JSON object with the values of the parameters by their names"
        raise Rejection(400, error_body("invalid_body", "The body can't be read", details))
    workflow = await _named(request, caller(request).tenant)
    if workflow is None:
        raise UnknownWorkflow
    options = {name: given.pop(name) for name in RESERVED if name in given}
    values = values_for(workflow.parameters, given, _random)
    # A turn for others between long steps.
    await asyncio.sleep(0)
    graph = json_codec.loads(workflow.graph)
    fill(graph, workflow.parameters, values)
    try:
        filled = await resolved(request, json_codec.dumps_exact(graph))
    except V2Error as error:
        if wrong := _missing(workflow, values, error):
            raise BadValues(wrong) from error
        raise
    head = encode(options)[:-1] + b"," if options else b"{"
    return Run(b'%b"prompt":%b}' % (head, filled), {"parameters": values}, partial(_explain, workflow))


def _random(low: int, high: int) -> int:
    return low + secrets.randbelow(high - low + 1)


def _missing(workflow: Workflow, values: Mapping[str, Any], error: V2Error) -> dict[str, Wrong]:
    """Return the values that name assets which there are not."""
    missing = (error.details or {}).get("missing_ids") or []
    return {
        each.name: Wrong(given_as(id_), "the id of an asset, or of an output of a job, of the caller's")
        for each in workflow.parameters
        if (id_ := _asset_of(values.get(each.name))) in missing and id_ is not None
    }


def _asset_of(value: Any) -> str | None:
    info = value.get("info") if isinstance(value, dict) else None
    id_ = info.get("id") if isinstance(info, dict) else None
    return id_ if isinstance(id_, str) else None


def _explain(workflow: Workflow, body: dict[str, Any]) -> None:
    """Name the parameters in ComfyUI's errors about their inputs."""
    by_input: dict[tuple[str, str], Parameter] = {
        (target.node_id, target.input_name): each for each in workflow.parameters for target in each.targets
    }
    nodes = body.get("node_errors")
    for node_id, node in nodes.items() if isinstance(nodes, dict) else ():
        errors = node.get("errors") if isinstance(node, dict) else None
        for each in errors if isinstance(errors, list) else ():
            extra = each.get("extra_info") if isinstance(each, dict) else None
            name = extra.get("input_name") if isinstance(extra, dict) else None
            if isinstance(name, str) and isinstance(extra, dict) and (node_id, name) in by_input:
                extra["parameter"] = by_input[node_id, name].name
