"""Run a prompt for a request that waits: submit it as POST /prompt does, wait for its end, answer with its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from aiohttp import web
from yarl import URL

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.jobs.admission.replies import Reply
from gateway.jobs.parsing.json_reader import NotRead
from gateway.jobs.state.job import Job
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.store.protocol import HistoryRecord, StoreError
from gateway.telemetry.tasks import in_turns
from gateway.tenants.limits import LimitReached
from gateway.web.guard.context import caller, context_of, whose
from gateway.web.guard.rate_limits import quota_headers
from gateway.web.http.request_keys import ACCEPTED, MORE_HEADERS, STREAMING
from gateway.web.http.request_log import name_jobs
from gateway.web.http.responses import json, problem
from gateway.web.http.v2_errors import V2Error
from gateway.web.routes.prompt import REFUSALS, refusal_of, response_of, with_checked_webhook
from gateway.web.run.negotiation import Form, choose
from gateway.web.run.results import (
    PROMPT_ID,
    RETRY_SECONDS,
    headers_of,
    in_order,
    link_of,
    result_object,
    status_and_error,
)
from gateway.web.v2.asset_routes import send_output
from gateway.web.v2.job_routes import wait_of
from gateway.web.v2.jobs import Found, is_open, status_of
from gateway.web.v2.model import SUCCEEDED, JobView, Links, making_outputs
from gateway.web.v2.outputs import Output
from gateway.web.v2.service import links_for, v2_of
from gateway.web.v2.submission import idempotency_key
from gateway.web.v2.submitting import read_submission, submit
from gateway.web.v2.waits import TooManyWaits

CANCEL = "cancel_on_disconnect"
_FLAGS = {"true": True, "1": True, "false": False, "0": False, "": False}
_REUSED = "it was used within a day; GET the job that it made, or send another key"
_RETRY = {"Retry-After": "5"}
# Headers of a GET that choose a part of a file, or compare it with a copy.
_ABOUT_FILE = ("Range", "If-Range", "If-None-Match", "If-Modified-Since", "Sec-Fetch-Dest")
# Names of parameters are added to refusals up to so many bytes.
_MAX_NAMED = 2**20


@dataclass(frozen=True, slots=True)
class Run:
    """A run that a request asks for.

    `body` is that of POST /prompt. `more` are fields for the JSON of the result. `explain` adds to a refusal what the
    caller knows its inputs by.
    """

    body: bytes
    more: Mapping[str, Any]
    explain: Callable[[dict[str, Any]], None] | None = None


def seconds_of(request: web.Request) -> float:
    """Return the maximum wait of a request: `run.wait_max`, or less if Prefer asks for less (RFC 7240)."""
    preferences, maximum = request.headers.getall("Prefer", []), context_of(request).settings.run.wait_max
    wait = wait_of(preferences, maximum)
    if wait is not None:
        return wait
    return 0.0 if _is_async(preferences) else maximum


def _is_async(preferences: list[str]) -> bool:
    return any(each.strip().lower() == "respond-async" for line in preferences for each in line.split(","))


def cancels(request: web.Request, given: Any) -> bool:
    """Return True if the job is to be cancelled when the client goes away.

    Args:
        given: the field of the body; None if it has none.

    Raises:
        Rejection: the query or the body has something else than true or false.
    """
    asked = request.rel_url.query.get(CANCEL, "")
    if asked.lower() not in _FLAGS or not (given is None or isinstance(given, bool)):
        value = asked if given is None else json_codec.dumps_exact(given)[:100].decode("utf-8", "replace")
        raise Rejection(400, error_body("invalid_body", f"{CANCEL} must be true or false", f"got {value[:100]}"))
    return _FLAGS[asked.lower()] or given is True


# Reads the body of a request into a `Run`. It calls its argument with the number of bytes received so far.
Prepare = Callable[[Callable[[int], None]], Awaitable[Run]]


async def run(request: web.Request, prepare: Prepare, *, seconds: float) -> web.StreamResponse:
    """Run a prompt, and answer with its result, or 202 after a time.

    Args:
        prepare: reads the request's body; its errors are refusals.
        seconds: maximum wait, from here.
    """
    v2, tenant = v2_of(request), caller(request).tenant
    until = time.monotonic() + seconds
    try:
        # A request that does not wait takes no place.
        with v2.waits.place(request, tenant) if seconds > 0 else nullcontext(asyncio.Event()) as event:
            accepted = await _accept(request, prepare)
            if isinstance(accepted, web.Response):
                return accepted
            prompt_id, more, is_cancelled = accepted
            request[ACCEPTED] = True
            found = await _ended(request, tenant, prompt_id, until - time.monotonic(), event)
    except TooManyWaits as error:
        return _too_many(error)
    if request.transport is None:
        if is_cancelled and isinstance(found, Job):
            await context_of(request).engine.cancellation.cancel(tenant, [prompt_id])
        # Nobody reads this.
        return web.Response(status=499)
    return await _answered(request, prompt_id, found, more, seconds)


def _too_many(error: TooManyWaits) -> web.Response:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return problem(429, "too_many_waiting", "Too many requests wait for jobs", f"{error}; try again later", headers)


async def result(request: web.Request, prompt_id: str) -> web.StreamResponse:
    """Answer with the result of a job that the caller sees, after its end or 202 after a time."""
    seconds, identity = seconds_of(request), whose(request)
    found = v2_of(request).jobs.find(identity, prompt_id)
    if found is not None and is_open(found) and seconds > 0:
        try:
            with v2_of(request).waits.place(request, caller(request).tenant) as event:
                found = await _ended(request, found.tenant, prompt_id, seconds, event)
        except TooManyWaits as error:
            return _too_many(error)
    return await _answered(request, prompt_id, found, {}, seconds)


async def _ended(
    request: web.Request, tenant: str, prompt_id: str, seconds: float, event: asyncio.Event
) -> Found | None:
    """Return a job of a tenant after its end, or after a time; None if it is gone."""
    v2 = v2_of(request)
    found = v2.jobs.find_own(tenant, prompt_id)
    if is_open(found) and seconds > 0:
        await v2.waits.end_of(tenant, prompt_id, seconds, event, lambda: is_open(v2.jobs.find_own(tenant, prompt_id)))
        found = v2.jobs.find_own(tenant, prompt_id)
    return found


# -- submission ----------------------------------------------------------------------------------------------------


async def _accept(request: web.Request, prepare: Prepare) -> web.Response | tuple[str, Mapping[str, Any], bool]:
    """Submit the prompt. Return its id, the fields beside its result, and `cancels`; or the refusal.

    Raises:
        LimitReached, StoreError: as on POST /prompt.
    """
    gateway, tenant = context_of(request), caller(request).tenant
    gateway.limits.prompt(tenant, time.monotonic())
    keys, key = v2_of(request).keys, None
    explain = None
    try:
        given = idempotency_key(request.headers.get("Idempotency-Key"))
        with gateway.limits.body(tenant) as grow:
            asked = await prepare(grow)
            explain, more = asked.explain, asked.more
            submission = await read_submission(request, asked.body)
            # It may be large, and the job may run for long.
            del asked
        submission, flag = _without_flag(with_checked_webhook(request, submission))
        is_cancelled = cancels(request, flag)
        if given is not None:
            if not keys.take(tenant, given, int(time.time() * 1000)):
                return problem(422, "idempotency_key_reuse", "This Idempotency-Key was used already", _REUSED)
            key = given
        reply = await submit(request, submission)
        refusal = None if reply.status == 200 else _refused_there(reply, explain, _rates(request))
    except REFUSALS as error:
        if explain is not None and isinstance(error, Rejection):
            explain(error.body)
        refusal = refusal_of(request, error, _rates(request))
    except V2Error as error:
        refusal = problem(error.status, error.code, str(error), "", dict(error.headers), **(error.details or {}))
    except (LimitReached, StoreError):
        if key is not None:
            keys.free(tenant, key)
        raise
    if refusal is not None:
        if key is not None:
            # There is certainly no job.
            keys.free(tenant, key)
        return refusal
    name_jobs(request, [reply.prompt_id])
    return reply.prompt_id, more, is_cancelled


def _rates(request: web.Request) -> dict[str, str]:
    return quota_headers(context_of(request).limits.quotas(caller(request).tenant, time.monotonic()))


def _without_flag(submission: Submission) -> tuple[Submission, Any]:
    """Return a submission without `cancel_on_disconnect`, which is no backend's business, and that field."""
    if CANCEL.encode() not in submission.rest:
        return submission, None
    rest = json_codec.loads(submission.rest)
    flag = rest.pop(CANCEL, None)
    return replace(submission, rest=json_codec.packed(json_codec.dumps_exact(rest)) if rest else b"{}"), flag


def _refused_there(
    reply: Reply, explain: Callable[[dict[str, Any]], None] | None, rates: dict[str, str]
) -> web.Response:
    """Return a backend's refusal, byte for byte unless there is something to add."""
    if explain is not None and len(reply.body) <= _MAX_NAMED:
        try:
            body = json_codec.loads(reply.body)
        except json_codec.MalformedJson:
            body = None
        if isinstance(body, dict):
            explain(body)
            reply = replace(reply, body=json_codec.dumps_exact(body))
    return response_of(reply, rates)


# -- answers -------------------------------------------------------------------------------------------------------


async def _answered(
    request: web.Request, prompt_id: str, found: Found | None, more: Mapping[str, Any], seconds: float
) -> web.StreamResponse:
    """Answer with a job's result; 202 if it has not ended."""
    if found is None:
        return problem(404, "unknown_job", "There is no such job", f"{prompt_id[:100]} is no job of the caller's")
    v2, links = v2_of(request), links_for(request, found.tenant)
    headers = {PROMPT_ID: prompt_id, **_applied(request, seconds)}
    try:
        if is_open(found):
            headers |= {"Location": link_of(links, prompt_id), "Retry-After": str(RETRY_SECONDS)}
            return json(await _shown(await v2.jobs.view(found), links, more), 202, headers)
        if status_of(found) == SUCCEEDED:
            outputs = in_order(await v2.jobs.outputs(found))
            chosen = choose(request.headers.getall("Accept", []), [each.content_type for each in outputs])
            if isinstance(chosen, int):
                return await _sent(request, found, outputs, chosen)
            if chosen is Form.NONE:
                types = ", ".join(dict.fromkeys(each.content_type for each in outputs)) or "nothing"
                refusal = error_body(
                    "no_such_output", "The job made no output of such a type", f"it made {types[:400]}"
                )
                return await _json(request, found, headers, 406, {**more, **refusal})
        return await _json(request, found, headers, None, more)
    except NotRead as error:
        return problem(503, "result_not_read", "The result could not be read", str(error), {**_RETRY, **headers})


def _applied(request: web.Request, seconds: float) -> dict[str, str]:
    """Return the header that tells of the preference that counts (RFC 7240, section 3)."""
    preferences = request.headers.getall("Prefer", [])
    if wait_of(preferences, seconds) is not None:
        return {"Preference-Applied": f"wait={int(seconds)}"}
    return {"Preference-Applied": "respond-async"} if _is_async(preferences) else {}


async def _json(
    request: web.Request, found: Found, headers: dict[str, str], status: int | None, more: Mapping[str, Any]
) -> web.Response:
    view = await v2_of(request).jobs.view(found)
    failure = json_codec.loads(found.summary).get("execution_error") if isinstance(found, HistoryRecord) else None
    found_status, error = status_and_error(view, failure)
    shown = await _shown(view, links_for(request, found.tenant), {**more, **error})
    return json(shown, found_status if status is None else status, headers)


async def _shown(view: JobView, links: Links, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a result, made in short steps."""
    return result_object(view, links, await in_turns(making_outputs(view, links, time.time())), more)


async def _sent(request: web.Request, found: Found, outputs: list[Output], place: int) -> web.StreamResponse:
    """Answer with the bytes of an output."""
    output = outputs[place]
    more = headers_of(output, outputs, found.prompt_id, links_for(request, found.tenant))
    request[MORE_HEADERS] = more
    is_read = request.method in ("GET", "HEAD")
    kept = {name: request.headers[name] for name in _ABOUT_FILE if is_read and name in request.headers}
    # An admin's own file may have the same name.
    query = "" if found.tenant == caller(request).tenant else "?" + urlencode({"tenant": found.tenant})
    asked = request.clone(
        method=request.method if is_read else "GET",
        rel_url=URL(f"/view{query}", encoded=True),
        headers={**kept, **({"Host": request.headers["Host"]} if "Host" in request.headers else {})},
    )
    try:
        response = await send_output(asked, found, output)
    except V2Error as error:
        response = problem(error.status, error.code, str(error), "", dict(error.headers))
    finally:
        if STREAMING in asked:
            request[STREAMING] = asked[STREAMING]
    if not response.prepared:
        response.headers.update(more)
    return response
