"""Routes of jobs of the Comfy API v2: submit, list, show, cancel, and the graph behind a job."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Any

from aiohttp import web

from gateway.comfy.errors import is_prompt_id
from gateway.jobs.parsing.json_reader import NotRead
from gateway.jobs.state.job import Job
from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.telemetry.tasks import in_turns, pause
from gateway.web.guard.audit import foreign_noted
from gateway.web.guard.context import caller, context_of, whose
from gateway.web.guard.rate_limits import quota_headers
from gateway.web.http.responses import json, json_bytes
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.answers import answering
from gateway.web.v2.jobs import Found, created_of, is_open
from gateway.web.v2.listing import cursor_of, query_of
from gateway.web.v2.model import JobView, Links, job_object, listed_object, making_outputs
from gateway.web.v2.service import V2, links_for, v2_of
from gateway.web.v2.sizes import ALL_SECONDS
from gateway.web.v2.submitting import accept
from gateway.web.v2.waits import TooManyWaits

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)
# Seconds to wait for the end of a job that is being cancelled while it ends by itself.
ENDING_SECONDS = 2.0
# Seconds in which a list waits for sizes that are not known.
LIST_SECONDS = 2.0
# Outputs after which a page of a list ends, because each job of a page may have 10,000.
LIST_OUTPUTS = 1_000
_RETRY = {"Retry-After": "5"}


@answering
async def post_job(request: web.Request) -> web.Response:
    """Submit a job: 201, with the queued job. With ``Prefer: wait=N``: 200 with the ended job, if it ends in time."""
    v2, tenant = v2_of(request), caller(request).tenant
    prompt_id, new = await accept(request)
    links = links_for(request, tenant)
    quotas = context_of(request).limits.quotas(tenant, time.monotonic())
    headers = {"Location": links.of_job(prompt_id)["self"], **quota_headers(quotas)}
    wait = wait_of(request.headers.getall("Prefer", ()), context_of(request).settings.v2.wait_max)
    job = context_of(request).engine.ledger.find(tenant, prompt_id)
    accepted = v2.jobs.accepted_view(job, prompt_id, new.note)
    if wait is not None:
        try:
            found = await ended(v2, request, prompt_id, wait)
            headers["Preference-Applied"] = f"wait={int(wait)}"
        except TooManyWaits:
            # The job is accepted, and a server may ignore a preference (RFC 7240, section 2).
            found = None
        if found is not None and not isinstance(found, Job):
            with suppress(NotRead, StoreError):
                # If its results can't be read, the job is accepted all the same: an error would have it sent again.
                view = await v2.jobs.view(found)
                if view.is_over:
                    return json(await _shown(view, links), 200, headers)
    return json(job_object(accepted, links, time.time()), 201, headers)


def wait_of(preferences: list[str] | tuple[str, ...], maximum: float) -> float | None:
    """Return the seconds that a client is ready to wait (RFC 7240, section 4.3); None if it does not wait."""
    match = _WAIT.search(",".join(preferences))
    return min(float(match[1]), maximum) if match is not None else None


async def ended(v2: V2, request: web.Request, prompt_id: str, seconds: float) -> Found | None:
    """Wait for a job's end for a time. Return the job then; None if it is gone.

    Raises:
        TooManyWaits: as many answers wait as may.
    """
    tenant = caller(request).tenant
    with v2.waits.place(request, tenant) as event:
        await v2.waits.end_of(tenant, prompt_id, seconds, event, lambda: is_open(v2.jobs.find_own(tenant, prompt_id)))
    return v2.jobs.find_own(tenant, prompt_id)


@answering
async def get_jobs(request: web.Request) -> web.Response:
    """List the caller's jobs, the newest first. Each item has the fields of both forms in use."""
    v2, identity = v2_of(request), whose(request)
    query = query_of(request.rel_url.query)
    page, last = await v2.jobs.page(identity, query)
    items: list[dict[str, Any]] = []
    until = time.monotonic() + LIST_SECONDS
    count = 0
    for place, found in enumerate(page, start=1):
        # Without signed links, because signing those of a hundred jobs takes long.
        view = await _view(v2, found, max(until - time.monotonic(), 0.0), is_linked=False)
        items.append(listed_object(await _shown(view, links_for(request, found.tenant))))
        count += len(view.outputs)
        if count >= LIST_OUTPUTS and place < len(page):
            last = found
            break
        await asyncio.sleep(0)
    more = {} if last is None else {"next_cursor": cursor_of(created_of(last), last.prompt_id)}
    return json({"jobs": items, "truncated": last is not None, **more})


async def _view(v2: V2, found: Found, seconds: float = ALL_SECONDS, *, is_linked: bool = True) -> JobView:
    try:
        return await v2.jobs.view(found, seconds, is_linked=is_linked)
    except NotRead as error:
        raise V2Error(503, "upstream_unreachable", f"A job could not be read: {error}", None, _RETRY) from error


async def _shown(view: JobView, links: Links) -> dict[str, Any]:
    """Return the object of a job, made in short steps."""
    now = time.time()
    return job_object(view, links, now, await in_turns(making_outputs(view, links, now)))


@answering
async def get_job(request: web.Request) -> web.Response:
    """Answer with a job."""
    found = named_job(request)
    return json(await _shown(await _view(v2_of(request), found), links_for(request, found.tenant)))


def named_job(request: web.Request) -> Found:
    """Return the job that a request names.

    Raises:
        V2Error: the caller has no such job.
    """
    job_id = request.match_info["job_id"]
    found = v2_of(request).jobs.find(whose(request), job_id) if is_prompt_id(job_id) else None
    if found is None:
        raise _no_job(job_id)
    return found


def _no_job(job_id: str) -> V2Error:
    return V2Error(404, "not_found", f"No job {job_id[:100]}.")


@answering
async def get_workflow(request: web.Request) -> web.Response:
    """Answer with the graph that ran, in API format."""
    found = named_job(request)
    try:
        graph = await v2_of(request).jobs.workflow(found)
    except NotRead as error:
        raise V2Error(503, "upstream_unreachable", f"The job could not be read: {error}", None, _RETRY) from error
    if graph is None:
        raise V2Error(404, "not_found", f"No recoverable workflow for job {found.prompt_id}.")
    return json_bytes(b'{"workflow":%b,"format":"api"}' % graph)


@answering
async def cancel_job(request: web.Request) -> web.Response:
    """Cancel a job in any state. Answer with the job: canceling, or as it ended."""
    v2, found = v2_of(request), named_job(request)
    if isinstance(found, Job):
        with foreign_noted(request, Action.JOB_CANCELLED, [found.prompt_id]) as touched:
            engine = context_of(request).engine
            is_found = await engine.cancellation.cancel(found.tenant, [found.prompt_id], touched)
        if not is_found and isinstance(now := v2.jobs.find_own(found.tenant, found.prompt_id), Job):
            await _end_of(v2, now)
    after = v2.jobs.find_own(found.tenant, found.prompt_id)
    if after is None:
        raise _no_job(found.prompt_id)
    return json(await _shown(await _view(v2, after), links_for(request, found.tenant)))


async def _end_of(v2: V2, job: Job) -> None:
    """Wait for the end of a job that has run already, because nothing can cancel it any more."""
    event = asyncio.Event()
    leave = v2.kept.wait_for(job.tenant, job.prompt_id, event)
    try:
        await pause(ENDING_SECONDS, event)
    finally:
        leave()
