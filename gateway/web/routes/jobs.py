"""/api/jobs."""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web

from gateway.comfy import json_codec
from gateway.comfy.errors import is_prompt_id
from gateway.comfy.jobs_api import JobsQuery, Listed, job_of_queue_item, page_of, parse_jobs_query
from gateway.jobs.events.shown_eta import eta_fields
from gateway.jobs.files.entry_links import Answer
from gateway.jobs.parsing.json_reader import NotRead
from gateway.jobs.state.job import Job, with_owner
from gateway.jobs.state.shown_running import all_running
from gateway.store.protocol import HistoryRecord
from gateway.store.spool import Bulk
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import foreign_noted
from gateway.web.guard.context import context_of, tells_whose, whose
from gateway.web.http.base_path import link_prefix
from gateway.web.http.responses import JSON_HEADERS, json
from gateway.web.routes import large_responses
from gateway.web.routes.proxying import send_pieces
from gateway.web.routes.queue import BadBody, read_object

# An open job or an ended one.
Entry = tuple[Listed, Job | HistoryRecord]


async def get_jobs(request: web.Request) -> web.StreamResponse:
    """Answer with the caller's jobs, open and ended, filtered, sorted and in pages (server.py, get_jobs)."""
    query = parse_jobs_query(request.rel_url.query)
    if isinstance(query, str):
        return json({"error": query}, 400)
    engine, identity = context_of(request).engine, whose(request)
    tenants = None if identity.is_admin else [identity.tenant]
    await engine.history.read_summaries(tenants)
    # From here without an await: no job is in both, or in neither.
    jobs = engine.ledger.jobs(identity.sees)
    running = set(all_running(jobs))
    found: list[Entry] = [(_listed(job, is_running=job in running), job) for job in jobs]
    found += engine.history.listed(tenants)
    pieces = encoded_list(found, query, tells_whose=tells_whose(request))
    return await send_pieces(request, pieces, JSON_HEADERS)


def encoded_list(found: list[Entry], query: JobsQuery, *, tells_whose: bool) -> Iterator[bytes]:
    """Yield the answer piece by piece. Ended jobs are encoded already, open jobs only if they are on the page."""
    page, pagination = page_of(found, query)
    yield b'{"jobs":['
    for n, (shown, job) in enumerate(page):
        encoded = job.summary if isinstance(job, HistoryRecord) else _encoded(job, shown.status)
        yield (b"," if n else b"") + (with_owner(encoded, job.tenant, job.backend) if tells_whose else encoded)
    yield b'],"pagination":%b}' % json_codec.dumps(pagination)


def _listed(job: Job, *, is_running: bool) -> Listed:
    status = "in_progress" if is_running else "pending"
    return Listed(status, job.create_time, workflow_id=job.submission.workflow_id)


def _encoded(job: Job, status: str) -> bytes:
    number = job.number if job.submission.number is not None else int(job.number)
    item = [number, job.prompt_id, {}, {"create_time": job.create_time}, job.outputs]
    shown, workflow_id = json_codec.dumps(job_of_queue_item(item, status)), job.submission.workflow_id
    return shown if workflow_id is None else b'%b,"workflow_id":%b}' % (shown[:-1], workflow_id)


async def get_job(request: web.Request) -> web.StreamResponse:
    """Answer with one job, and with its outputs if it has ended."""
    try:
        found = await _find(request, request.match_info["job_id"])
    except NotRead as error:
        return json({"error": f"The job could not be read: {error}"}, 503, {"Retry-After": "5"})
    except large_responses.Busy:
        return large_responses.busy()
    if found is None:
        return json({"error": "Job not found"}, 404)
    if isinstance(found, Bulk):
        return await large_responses.from_disk(request, b"", found, b"")
    return await large_responses.answer(request, [found])


async def _find(request: web.Request, prompt_id: str) -> bytes | Bulk | None:
    """Return a job in JSON, on disk if it is long; None if the caller has no such job."""
    engine, identity = context_of(request).engine, whose(request)
    tell = with_owner if tells_whose(request) else lambda encoded, *_: encoded
    job = engine.cancellation.find(identity.sees, prompt_id)
    if job is not None:
        is_running = job.backend is not None and job in all_running(engine.ledger.jobs_on(job.backend))
        encoded = _encoded(job, _listed(job, is_running=is_running).status)
        eta = json_codec.dumps(eta_fields(engine.etas.shown(job), "gateway_"))
        return tell(b"%b,%b" % (encoded[:-1], eta[1:]), job.tenant, job.backend)
    ended = engine.history.find(identity.tenant, prompt_id)
    if ended is None and identity.is_admin:
        ended = engine.history.find_any(prompt_id)
    if ended is None:
        return None
    async with engine.history.reading(ended):
        entry = await engine.history.entry(ended)
        if entry is None:
            return None
        shown = await engine.reader.show_job(identity.tenant, prompt_id, entry)
        if engine.entry_links is not None:
            (files,) = await engine.entry_links.members([(ended, entry)], Answer(link_prefix(request)))
            shown = b"%b%b}" % (shown[:-1], files)
        shown = tell(shown, ended.tenant, ended.backend)
        return await large_responses.kept(engine.spool, ended.tenant, shown) or shown


async def cancel_job(request: web.Request) -> web.Response:
    """Cancel one job in any state."""
    return await _cancel(request, [request.match_info["job_id"]])


async def cancel_jobs(request: web.Request) -> web.Response:
    """Cancel several jobs. An unknown id is no error, a malformed one is (server.py, cancel_jobs_batch)."""
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
    with foreign_noted(request, Action.JOB_CANCELLED, ids) as touched:
        found = await context_of(request).engine.cancellation.cancel(whose(request).sees, ids, touched)
    return json({"cancelled": found})
