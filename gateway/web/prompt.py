"""POST /prompt and GET /prompt."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.comfy import wire
from gateway.jobs.admission import Rejection, read
from gateway.jobs.dispatcher import RETRY_AFTER_SECONDS
from gateway.jobs.reply import Overloaded, Reply
from gateway.web.answers import json, json_bytes, problem
from gateway.web.parts import caller, parts


class _EarlyAnswer:
    """An answer that is written before its handler has come to its end."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._writing: asyncio.Task[web.Response] | None = None

    def write(self, reply: Reply) -> None:
        """Write it now. The connection is not used again: its handler goes on."""
        self._writing = asyncio.get_running_loop().create_task(self._write(_response(reply)))

    async def _write(self, response: web.Response) -> web.Response:
        response.force_close()
        await response.prepare(self._request)
        await response.write_eof()
        return response

    async def written(self) -> web.Response | None:
        """The answer, if one was written."""
        return await self._writing if self._writing is not None else None


def _response(reply: Reply) -> web.Response:
    return web.Response(body=reply.body, status=reply.status, headers={"Content-Type": reply.content_type})


async def post_prompt(request: web.Request) -> web.Response:
    """Accept a prompt."""
    early = _EarlyAnswer(request)
    try:
        engine, identity = parts(request).engine, caller(request)
        submission = read(await request.read(), engine.checks.file_inputs)
        reply = await engine.dispatcher.submit(identity.tenant, submission, early.write, may_name_all=identity.is_admin)
    except Rejection as rejection:
        return json_bytes(wire.dumps(rejection.body), rejection.status)
    except Overloaded as error:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem(503, "too_many_waiting", "No prompt can be accepted now", str(error), headers)
    return await early.written() or _response(reply)


async def get_prompt(request: web.Request) -> web.Response:
    """How many jobs of the caller are open."""
    engine = parts(request).engine
    if caller(request).is_admin:
        running, pending = engine.foreign_items()
        remaining = len(engine.ledger) + len(running) + len(pending)
    else:
        remaining = engine.ledger.remaining(caller(request).tenant)
    return json({"exec_info": {"queue_remaining": remaining}})
