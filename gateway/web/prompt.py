"""POST /prompt and GET /prompt."""

from __future__ import annotations

from aiohttp import web

from gateway.comfy import wire
from gateway.jobs.admission import Rejection, read
from gateway.jobs.dispatcher import RETRY_AFTER_SECONDS, Overloaded
from gateway.web.answers import json, json_bytes, problem
from gateway.web.parts import caller, parts


async def post_prompt(request: web.Request) -> web.Response:
    """Accept a prompt."""
    try:
        submission = read(await request.read())
        reply = await parts(request).engine.dispatcher.submit(caller(request).tenant, submission)
    except Rejection as rejection:
        return json_bytes(wire.dumps(rejection.body), rejection.status)
    except Overloaded as error:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem(503, "too_many_waiting", "No prompt can be accepted now", str(error), headers)
    return web.Response(body=reply.body, status=reply.status, headers={"Content-Type": reply.content_type})


async def get_prompt(request: web.Request) -> web.Response:
    """How many jobs of the caller are open."""
    engine = parts(request).engine
    if caller(request).is_admin:
        running, pending = engine.foreign_items()
        remaining = len(engine.ledger) + len(running) + len(pending)
    else:
        remaining = engine.ledger.remaining(caller(request).tenant)
    return json({"exec_info": {"queue_remaining": remaining}})
