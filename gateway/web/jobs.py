"""/api/jobs."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.comfy import wire
from gateway.comfy.errors import is_prompt_id
from gateway.comfy.jobs import job_of_history, job_of_queue_item, list_jobs, parse_jobs_query
from gateway.jobs.engine import Engine
from gateway.jobs.job import SHOWN_RUNNING, WHOSE, Job
from gateway.telemetry.audit import Action
from gateway.tenants.keys import Identity
from gateway.web.answers import json
from gateway.web.auditing import foreign_noted
from gateway.web.parts import parts, tells_whose, whose
from gateway.web.queue import BadBody, read_object


async def get_jobs(request: web.Request) -> web.Response:
    """The caller's jobs, open and ended, filtered, sorted and in pages (server.py, get_jobs)."""
    query = parse_jobs_query(request.rel_url.query)
    if isinstance(query, str):
        return json({"error": query}, 400)
    engine, identity = parts(request).engine, whose(request)
    tenants = None if identity.is_admin else [identity.tenant]
    found = [(job.tenant, _open_job(job)) for job in engine.ledger.jobs(identity.sees)]
    found += [(ended.tenant, wire.loads(ended.summary)) for ended in engine.history.of(tenants)]
    return json(list_jobs([_told(request, *each) for each in found], query))


def _told(request: web.Request, tenant: str, job: dict[str, Any]) -> dict[str, Any]:
    return {**job, WHOSE: tenant} if tells_whose(request) else job


def _open_job(job: Job) -> dict[str, Any]:
    number = job.number if job.submission.number is not None else int(job.number)
    item = [number, job.prompt_id, {}, wire.loads(job.shown_extra_data()), job.outputs]
    return job_of_queue_item(item, "in_progress" if job.state in SHOWN_RUNNING else "pending")


async def get_job(request: web.Request) -> web.Response:
    """One job, with its outputs if it has ended."""
    found = await _find(parts(request).engine, whose(request), request.match_info["job_id"])
    return json({"error": "Job not found"}, 404) if found is None else json(_told(request, *found))


async def _find(engine: Engine, identity: Identity, prompt_id: str) -> tuple[str, dict[str, Any]] | None:
    """Whose job it is, and the job."""
    job = engine.control.find(identity.sees, prompt_id)
    if job is not None:
        return job.tenant, _open_job(job)
    ended = engine.history.find(identity.tenant, prompt_id)
    if ended is None and identity.is_admin:
        ended = engine.history.find_any(prompt_id)
    entry = await engine.history.entry(ended) if ended is not None else None
    if ended is None or entry is None:
        return None
    return ended.tenant, job_of_history(prompt_id, wire.loads(entry), include_outputs=True)


async def cancel_job(request: web.Request) -> web.Response:
    """Cancel one job, whatever its state."""
    return await _cancel(request, [request.match_info["job_id"]])


async def cancel_jobs(request: web.Request) -> web.Response:
    """Cancel several jobs; an id that fits none is no error, one that is no id is (server.py, cancel_jobs_batch)."""
    try:
        ids = (await read_object(request)).get("job_ids")
    except BadBody as error:
        wrong = "job_ids must be a list" if "object" in str(error) else "Request body must be valid JSON"
        return json({"error": wrong}, 400)
    if not isinstance(ids, list):
        return json({"error": "job_ids must be a list"}, 400)
    invalid = [item if isinstance(item, str) else repr(item) for item in ids if not is_prompt_id(item)]
    if invalid:
        return json({"error": "job_ids contains invalid id(s)", "invalid_ids": invalid}, 400)
    return await _cancel(request, ids)


async def _cancel(request: web.Request, ids: list[str]) -> web.Response:
    with foreign_noted(request, Action.JOB_CANCELLED) as touched:
        found = await parts(request).engine.control.cancel(whose(request).sees, ids, touched)
    return json({"cancelled": found})
