"""Place and ETA of open jobs: the headers of POST /prompt, and GET /gateway/api/v1/me/jobs."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.jobs.events.shown_eta import eta_fields, eta_headers
from gateway.jobs.state.job import Job
from gateway.jobs.state.transitions import SHOWN_RUNNING
from gateway.web.guard.context import context_of, whose
from gateway.web.http.responses import json, problem

# Jobs of a page.
PAGE = 100
_PRIVATE = {"Cache-Control": "no-store"}


def headers_for(request: web.Request, tenant: str, prompt_id: str) -> dict[str, str]:
    """Return the headers that show a tenant's job; none if the job has ended."""
    engine = context_of(request).engine
    job = engine.ledger.find(tenant, prompt_id)
    return {} if job is None else eta_headers(engine.etas.answered(job))


async def get_own_jobs(request: web.Request) -> web.Response:
    """Answer with at most `limit` of the caller's open jobs in the order of acceptance, beginning after `after`."""
    query, engine = request.rel_url.query, context_of(request).engine
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= PAGE):
        return problem(400, "invalid_query", f"limit must be a number from 1 to {PAGE}", headers=_PRIVATE)
    jobs, first = engine.ledger.jobs(whose(request).tenant), 0
    if "after" in query:
        first = next((n for n, job in enumerate(jobs, 1) if job.prompt_id == query["after"]), -1)
        if first < 0:
            # The order has no place for a job that has ended.
            return problem(409, "job_ended", "The job of `after` has ended", "begin anew without it", _PRIVATE)
    page = jobs[first : first + int(limit)]
    more = {"next": page[-1].prompt_id} if first + len(page) < len(jobs) else {}
    return json({"jobs": [_shown(request, job) for job in page], **more}, headers=_PRIVATE)


async def get_own_job(request: web.Request) -> web.Response:
    """Answer with one of the caller's open jobs."""
    job = context_of(request).engine.ledger.find(whose(request).tenant, request.match_info["prompt_id"])
    if job is None:
        details = "it has ended, or there is none of this id; GET /api/jobs/{job_id} shows ended jobs, too"
        return problem(404, "unknown_job", "There is no such open job", details, _PRIVATE)
    return json(_shown(request, job), headers=_PRIVATE)


def _shown(request: web.Request, job: Job) -> dict[str, Any]:
    is_running = job.state in SHOWN_RUNNING
    return {
        "prompt_id": job.prompt_id,
        "status": "in_progress" if is_running else "pending",
        "create_time": job.create_time,
        **eta_fields(context_of(request).engine.etas.shown(job)),
    }
