"""POST /prompt and GET /prompt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
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
from gateway.web.guard.prompt_headers import with_requirement
from gateway.web.guard.rate_limits import quota_headers
from gateway.web.http.content_safety import NOSNIFF
from gateway.web.http.request_body import read_json
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.request_log import name_jobs
from gateway.web.http.responses import json_bytes, problem
from gateway.web.routes.etas import headers_for
from gateway.webhooks.prompt_checks import check_prompt_webhook

BACKEND_HEADER = "X-Gateway-Backend"


class _EarlyAnswer:
    """An answer that is written before its handler ends."""

    def __init__(self, request: web.Request, headers: Callable[[Reply], dict[str, str]]) -> None:
        self._request = request
        self._headers = headers
        self._writing: asyncio.Task[web.Response] | None = None

    def write(self, reply: Reply) -> None:
        """Write the answer now. The connection closes after it, because the handler goes on."""
        self._writing = asyncio.get_running_loop().create_task(self._write(response_of(reply, self._headers(reply))))

    async def _write(self, response: web.Response) -> web.Response:
        response.force_close()
        await response.prepare(self._request)
        await response.write_eof()
        return response

    async def written(self) -> web.Response | None:
        """Return the answer if one was written, else None."""
        return await self._writing if self._writing is not None else None


def response_of(reply: Reply, headers: dict[str, str]) -> web.Response:
    """Return the answer of a reply."""
    own = {"Content-Type": reply.content_type, "Cache-Control": "private", **NOSNIFF}
    return web.Response(body=reply.body, status=reply.status, headers={**own, **headers})


# Refusals of a prompt that `refusal_of` answers.
REFUSALS = (Rejection, json_codec.MalformedJson, web.HTTPRequestEntityTooLarge, NotRead, Overloaded)


async def post_prompt(request: web.Request) -> web.Response:
    """Accept a prompt. A refused one counts for its tenant's rate, too, because a refusal costs as much."""
    engine, identity, limits = context_of(request).engine, caller(request), context_of(request).limits

    def rates() -> dict[str, str]:
        return quota_headers(limits.quotas(identity.tenant, time.monotonic()))

    def answered(reply: Reply) -> dict[str, str]:
        shown = headers_for(request, identity.tenant, reply.prompt_id) if reply.status == 200 else {}
        return {**rates(), **_backend_header(request, reply), **shown}

    early = _EarlyAnswer(request, answered)
    try:
        limits.prompt(identity.tenant, time.monotonic())
        submission = with_requirement(request, with_checked_webhook(request, await _read(request)))
        if submission.secrets and (key := key_of(request)) is not None:
            # If a client sends the gateway's key as a partner key as well, no backend gets it, because it is none.
            submission = submission.without_secret(key)
        submission = await engine.bindings.with_bound(identity.tenant, submission)
        await engine.admission.ready_for(submission)
        if submission.prompt_id is not None:
            name_jobs(request, [submission.prompt_id])
        reply = await engine.dispatcher.submit(identity.tenant, submission, early.write)
    except REFUSALS as error:
        return refusal_of(request, error, rates())
    name_jobs(request, [reply.prompt_id])
    return await early.written() or response_of(reply, answered(reply))


def refusal_of(request: web.Request, error: Exception, rates: dict[str, str]) -> web.Response:
    """Return the answer for one of `REFUSALS`.

    Args:
        rates: the headers with the remainder of the tenant's rates.
    """
    again = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    match error:
        case Rejection():
            context_of(request).metrics.prompts_refused.labels(error.body["error"]["type"]).inc()
            # Spell it as ComfyUI does, because a backend refuses a missing file, and the gateway another tenant's.
            return json_bytes(json_codec.dumps_exact(error.body), error.status, rates)
        case json_codec.MalformedJson():
            return problem(400, "invalid_json", "The body is not JSON", str(error), rates)
        case web.HTTPRequestEntityTooLarge():
            details = f"{error.text}; a prompt may have dispatch.max_prompt_bytes, and any body server.max_body"
            is_prompts = context_of(request).settings.dispatch.max_prompt_bytes < request.client_max_size
            limit = "max_prompt_bytes" if is_prompts else "max_body"
            return problem(413, "body_too_large", "The request body is too large", details, rates, limit=limit)
        case NotRead():
            return problem(503, "prompt_not_read", "The prompt could not be read", str(error), again)
        case Overloaded(limit=str(limit)):
            context_of(request).metrics.limited.labels(limit).inc()
            what = "No prompt can be accepted now"
            return problem(503, "too_many_waiting", what, str(error), again, limit=limit)
    return problem(503, "too_many_waiting", "No prompt can be accepted now", str(error), again)


def with_checked_webhook(request: web.Request, submission: Submission) -> Submission:
    """Return a submission whose webhook may be delivered to.

    Raises:
        Rejection: it may not.
    """
    if submission.webhook is None:
        return submission
    settings = context_of(request).settings.webhooks
    return replace(submission, webhook=check_prompt_webhook(submission.webhook, settings))


def _backend_header(request: web.Request, reply: Reply) -> dict[str, str]:
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
