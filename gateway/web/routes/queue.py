"""/queue, /interrupt and /free."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.comfy.client import BackendError
from gateway.fleet.backend import Backend
from gateway.jobs.state.job import Job, queue_pieces
from gateway.telemetry.audit import Action
from gateway.telemetry.tasks import together
from gateway.tenants.keys import Identity
from gateway.web.guard.audit import foreign_noted
from gateway.web.guard.context import caller, context_of, tells_whose, whose
from gateway.web.http.request_body import MAX_DEPTH, read_json
from gateway.web.http.responses import JSON_HEADERS, empty, json_bytes, problem
from gateway.web.routes.proxying import send_pieces

# Bytes of a /queue that is encoded once and kept; a longer one is put together as it is sent.
MAX_AT_ONCE = 1024 * 1024
# Bytes and values of a body that orders something: as many ids as prompts may wait.
MAX_ORDER, MAX_ORDER_VALUES = 1024 * 1024, 12_000


class BadBody(Exception):
    """Refusal of a body that the route does not take; the text gives the reason."""


async def read_object(request: web.Request, *, optional: bool = False) -> dict[str, Any]:
    """Return the JSON object in a request's body.

    Raises:
        BadBody: the body is something else.
    """
    try:
        with context_of(request).limits.body(caller(request).tenant) as grow:
            body = await read_json(request, MAX_ORDER, grow)
            if optional and not body.strip():
                return {}
            value, _ = json_codec.read_bounded(body, MAX_DEPTH, MAX_ORDER_VALUES)
    except json_codec.MalformedJson as error:
        if optional:
            return {}
        raise BadBody(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadBody("the body must be a JSON object")
    return value


def ids_of(value: Any) -> list[str]:
    """Return the strings of a list of ids. Skip other items, as ComfyUI does, because they match no job."""
    if not isinstance(value, list):
        raise BadBody('"delete" must be a list of prompt ids')
    return [item for item in value if isinstance(item, str)]


async def get_queue(request: web.Request) -> web.StreamResponse:
    """Answer with the caller's open jobs; for an admin with all jobs, and with prompts of other clients of backends."""
    engine = context_of(request).engine
    identity = whose(request)
    ledger, tenant, tells = engine.ledger, identity.tenant, tells_whose(request)
    is_short = ledger.open_bytes(tenant) <= MAX_AT_ONCE
    if not identity.is_admin:
        if is_short and not tells:
            return json_bytes(ledger.queue_json(tenant))
        pieces = queue_pieces(ledger.jobs(tenant), ledger.shown_running(tenant), whose=tells)
        return await send_pieces(request, pieces, JSON_HEADERS)
    running, pending = engine.foreign_items()
    if is_short and not (tells or running or pending) and ledger.remaining(tenant) == len(ledger):
        return json_bytes(ledger.queue_json(tenant))
    shown = _shown(request, identity)
    foreign = [[json_codec.dumps(item) for item in items] for items in (running, pending)]
    if not tells and not ledger.listeners.all_interleave(tenant):
        # If nobody needs a key, everybody is shown one running prompt, be it of another client of that backend.
        space = 0 if shown else 1
        foreign = [foreign[0][:space], foreign[0][space:] + foreign[1]]
    pieces = queue_pieces(ledger.jobs(), shown, *foreign, whose=tells)
    return await send_pieces(request, pieces, JSON_HEADERS)


async def post_queue(request: web.Request) -> web.Response:
    """Delete the jobs that the caller sees pending: those named, or all of its own."""
    engine, as_whom = context_of(request).engine, whose(request)
    try:
        body = await read_object(request)
        ids = ids_of(body["delete"]) if "delete" in body else []
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error))
    with foreign_noted(request, Action.JOB_CANCELLED, ids) as touched:
        if body.get("clear"):
            await engine.cancellation.clear(as_whom.tenant, _shown(request, as_whom), touched)
        await engine.cancellation.delete(as_whom.sees, ids, _shown(request, as_whom), touched)
    return empty()


def _shown(request: web.Request, identity: Identity) -> list[Job]:
    """Return the jobs that a caller sees running."""
    sees_all = identity.is_admin and tells_whose(request)
    return context_of(request).engine.ledger.shown_running(None if sees_all else identity.tenant)


async def post_interrupt(request: web.Request) -> web.Response:
    """Interrupt the job named, or the one that the caller sees running first."""
    control, as_whom = context_of(request).engine.cancellation, whose(request)
    try:
        body = await read_object(request, optional=True)
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error))
    prompt_id = str(body.get("prompt_id") or "")
    with foreign_noted(request, Action.JOB_INTERRUPTED, [prompt_id]) as touched:
        if prompt_id:
            await control.interrupt(as_whom.sees, prompt_id, touched)
        else:
            await control.interrupt_shown(as_whom.tenant, touched)
    return empty()


async def post_free(request: web.Request) -> web.Response:
    """Free memory on every backend (admins)."""
    try:
        order = await read_object(request)
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error))

    # Encode the body anew, because a backend does not read all that the gateway reads.
    gateway, body = context_of(request), json_codec.dumps_exact(order)

    async def free(backend: Backend) -> None:
        try:
            await backend.client.call("POST", "/free", body)
        except BackendError:
            # One that does not answer has nothing that could be freed now.
            return
        if order.get("free_memory"):
            # Without it, a ComfyUI only moves its models from the GPU to its memory (main.py, prompt_worker).
            gateway.engine.learning.emptied(backend.name)

    await together(free(backend) for backend in gateway.fleet.backends.values())
    return empty()
