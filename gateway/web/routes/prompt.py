"""POST /prompt and GET /prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from aiohttp import web

from gateway.comfy import json_codec
from gateway.jobs.admission.replies import Overloaded, Reply
from gateway.jobs.parsing.json_reader import NotRead
from gateway.jobs.scheduling.dispatcher import RETRY_AFTER_SECONDS
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.tenants.limits import UNCOUNTED_BODY
from gateway.web.guard.authentication import key_of
from gateway.web.guard.context import caller, context_of
from gateway.web.guard.rate_limits import quota_headers
from gateway.web.http.content_safety import NOSNIFF
from gateway.web.http.request_body import read_json
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.request_log import name_jobs
from gateway.web.http.responses import json_bytes, problem

BACKEND_HEADER = "X-Gateway-Backend"


class _EarlyAnswer:
    """An answer that is written before its handler ends."""

    def __init__(self, request: web.Request, headers: Callable[[Reply], dict[str, str]]) -> None:
        self._request = request
        self._headers = headers
        self._writing: asyncio.Task[web.Response] | None = None

    def write(self, reply: Reply) -> None:
        """Write the answer now. The connection closes after it, because the handler goes on."""
        self._writing = asyncio.get_running_loop().create_task(self._write(_response(reply, self._headers(reply))))

    async def _write(self, response: web.Response) -> web.Response:
        response.force_close()
        await response.prepare(self._request)
        await response.write_eof()
        return response

    async def written(self) -> web.Response | None:
        """Return the answer if one was written, else None."""
        return await self._writing if self._writing is not None else None


def _response(reply: Reply, headers: dict[str, str]) -> web.Response:
    own = {"Content-Type": reply.content_type, "Cache-Control": "private", **NOSNIFF}
    return web.Response(body=reply.body, status=reply.status, headers={**own, **headers})


async def post_prompt(request: web.Request) -> web.Response:
    """Accept a prompt. A refused one counts for its tenant's rate, too, because a refusal costs as much."""
    engine, identity, limits = context_of(request).engine, caller(request), context_of(request).limits

    def rates() -> dict[str, str]:
        return quota_headers(limits.quotas(identity.tenant, time.monotonic()))

    def answered(reply: Reply) -> dict[str, str]:
        return {**rates(), **_place(request, reply)}

    early = _EarlyAnswer(request, answered)
    try:
        limits.prompt(identity.tenant, time.monotonic())
        submission = await _read(request)
        if submission.secrets and (key := key_of(request)) is not None:
            # If a client sends the gateway's key as a partner key as well, no backend gets it, because it is none.
            submission = submission.without_secret(key)
        submission = await engine.bindings.with_bound(identity.tenant, submission)
        await engine.admission.ready_for(submission)
        if submission.prompt_id is not None:
            name_jobs(request, [submission.prompt_id])
        reply = await engine.dispatcher.submit(identity.tenant, submission, early.write)
    except Rejection as rejection:
        context_of(request).metrics.prompts_refused.labels(rejection.body["error"]["type"]).inc()
        # Spell the refusal as ComfyUI does, because a backend refuses a missing file, and the gateway another tenant's.
        return json_bytes(json_codec.dumps_exact(rejection.body), rejection.status, rates())
    except json_codec.MalformedJson as error:
        return problem(400, "invalid_json", "The body is not JSON", str(error), rates())
    except web.HTTPRequestEntityTooLarge as error:
        details = f"{error.text}; a prompt may have dispatch.max_prompt_bytes, and any body server.max_body"
        is_prompts = context_of(request).settings.dispatch.max_prompt_bytes < request.client_max_size
        limit = "max_prompt_bytes" if is_prompts else "max_body"
        return problem(413, "body_too_large", "The request body is too large", details, rates(), limit=limit)
    except NotRead as error:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return problem(503, "prompt_not_read", "The prompt could not be read", str(error), headers)
    except Overloaded as error:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        if error.limit is None:
            return problem(503, "too_many_waiting", "No prompt can be accepted now", str(error), headers)
        context_of(request).metrics.limited.labels(error.limit).inc()
        what = "No prompt can be accepted now"
        return problem(503, "too_many_waiting", what, str(error), headers, limit=error.limit)
    name_jobs(request, [reply.prompt_id])
    return await early.written() or _response(reply, answered(reply))


def _place(request: web.Request, reply: Reply) -> dict[str, str]:
    """Return the header that names the job's backend to an admin; none if no backend has the job yet."""
    if not reply.backend or not caller(request).is_admin:
        return {}
    return {BACKEND_HEADER: reply.backend}


async def _read(request: web.Request) -> Submission:
    """Read the body into a submission. Nothing keeps the body afterwards."""
    engine, identity, length = context_of(request).engine, caller(request), request.content_length
    is_short = length is not None and length <= UNCOUNTED_BODY and "Content-Encoding" not in request.headers
    with nullcontext() if is_short else context_of(request).limits.body(identity.tenant) as grow:
        body = await read_json(request, context_of(request).settings.dispatch.max_prompt_bytes, grow)
        await engine.admission.ready(identity.tenant)
        inspect = engine.admission.inspector(identity.tenant, by_admin=identity.is_admin)
        return await engine.reader.read(
            identity.tenant,
            body,
            engine.admission.file_inputs,
            by_admin=identity.is_admin,
            inspect=inspect,
            own_name=partial(engine.outputs.own_name, identity.tenant),
            request_id=request_id_of(request),
        )


async def get_prompt(request: web.Request) -> web.Response:
    """Answer with the number of the caller's open jobs; for an admin, of all open prompts of the fleet."""
    engine = context_of(request).engine
    if caller(request).is_admin:
        running, pending = engine.foreign_items()
        remaining = len(engine.ledger) + len(running) + len(pending)
    else:
        remaining = engine.ledger.remaining(caller(request).tenant)
    # Written as ComfyUI writes it, because scripts that end idle machines search the text.
    return json_bytes(b'{"exec_info": {"queue_remaining": %d}}' % remaining)
