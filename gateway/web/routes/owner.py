"""/gateway/api/v1/me: an owner lists its uploads, and deletes jobs and uploads. An admin may act for a tenant."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

from aiohttp import web

from gateway.comfy.file_refs import KINDS, FileRef, file_ref
from gateway.files.index import Upload
from gateway.files.uploads import UploadInUse
from gateway.jobs.lifecycle.owner_deletion import FileInUse, JobOpen, NoSuchJob
from gateway.jobs.parsing.json_reader import NotRead
from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import foreign_noted, note
from gateway.web.guard.context import caller, context_of, whose
from gateway.web.http.responses import json, problem

PAGE = 1000
# Uploads that are looked at in one turn of the event loop.
AT_ONCE = 5_000
_PRIVATE = {"Cache-Control": "no-store"}
_RETRY = {"Retry-After": "5", **_PRIVATE}
_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}


async def delete_job(request: web.Request) -> web.Response:
    """Delete an ended job: its entry, the names of its files, and the uploads that it named if ``uploads=true``."""
    prompt_id, identity = request.match_info["prompt_id"], whose(request)
    with_uploads = _FLAGS.get(request.rel_url.query.get("uploads", ""))
    if with_uploads is None:
        return problem(400, "invalid_query", "uploads must be true or false", headers=_PRIVATE)
    with foreign_noted(request, Action.JOB_DELETED, [prompt_id]) as touched:
        try:
            deleted = await context_of(request).engine.owner_deletion.delete_job(
                identity.tenant, prompt_id, sees_all=identity.is_admin, with_uploads=with_uploads
            )
        except NoSuchJob:
            details = "GET /api/jobs lists those that there are; a job that was cancelled before it ran leaves none"
            return problem(404, "unknown_job", "There is no such job", details, _PRIVATE)
        except JobOpen:
            details = "cancel it first (POST /api/jobs/{job_id}/cancel), or wait for its end"
            return problem(409, "job_open", "The job has not ended", details, _PRIVATE)
        except FileInUse as error:
            details = f"an open job names '{error}': cancel that job, or wait for its end"
            return problem(409, "file_in_use", "A file of the job is in use", details, _PRIVATE)
        except NotRead as error:
            return problem(503, "entry_not_read", "The job's entry can't be read now", str(error), _RETRY)
        await context_of(request).webhooks.forget_jobs(deleted.tenant, [prompt_id])
        touched.append((deleted.tenant, prompt_id))
    uploads = [_path(ref) if ref.kind == "input" else f"{_path(ref)} [{ref.kind}]" for ref in deleted.uploads]
    return json({"deleted": prompt_id, "files": deleted.files, "uploads": uploads}, headers=_PRIVATE)


async def get_uploads(request: web.Request) -> web.Response:
    """Answer with at most `limit` uploads by type, folder and name, beginning after `after`."""
    query, gateway = request.rel_url.query, context_of(request)
    try:
        limit = int(query.get("limit", PAGE))
    except ValueError:
        limit = 0
    if not 1 <= limit <= PAGE:
        return problem(400, "invalid_query", f"limit must be a number from 1 to {PAGE}", headers=_PRIVATE)
    own = list(gateway.engine.files.uploads(whose(request).tenant).items())
    after, found = query.get("after", ""), list[tuple[str, FileRef, Upload]]()
    for start in range(0, len(own), AT_ONCE):
        named = ((_key(ref), ref, upload) for ref, upload in own[start : start + AT_ONCE])
        some = (each for each in named if each[0] > after)
        found = heapq.nsmallest(limit + 1, [*found, *some], key=lambda each: each[0])
        await asyncio.sleep(0)
    used_at = gateway.engine.uploads.used_at
    shown = [_shown(ref, upload, used_at(upload)) for _, ref, upload in found[:limit]]
    more = {"next": found[limit - 1][0]} if len(found) > limit else {}
    return json({"uploads": shown, **more}, headers=_PRIVATE)


async def delete_upload(request: web.Request) -> web.Response:
    """Delete one upload: its name, and its bytes if nothing else has them."""
    query, tenant = request.rel_url.query, whose(request).tenant
    kind = query.get("type", "input")
    ref = file_ref(kind, query.get("subfolder", ""), query.get("filename", "")) if kind in KINDS else None
    if ref is None:
        details = "add ?filename=, and subfolder and type (input, output or temp) if it has them"
        return problem(400, "invalid_filename", "The query names no upload", details, _PRIVATE)
    try:
        deleted = await context_of(request).engine.uploads.delete(tenant, ref)
    except UploadInUse:
        details = "an open job names it: cancel that job, or wait for its end"
        return problem(409, "file_in_use", "The upload is in use", details, _PRIVATE)
    except StoreError as error:
        _note(request, tenant, ref, str(error))
        reason = f"it is done, but a restart of the gateway would bring it back until it can be written: {error}"
        return problem(503, "journal_unavailable", "This is not in the journal yet", reason, _RETRY)
    if deleted is None:
        details = "GET /gateway/api/v1/me/uploads lists them; a file that a job made goes with its job"
        return problem(404, "unknown_upload", "There is no such upload", details, _PRIVATE)
    _note(request, tenant, ref, "ok")
    return json({"deleted": {"name": ref.filename, "subfolder": ref.subfolder, "type": ref.kind}}, headers=_PRIVATE)


def _note(request: web.Request, tenant: str, ref: FileRef, outcome: str) -> None:
    """Write a line of the audit log if an admin deleted another tenant's upload."""
    if tenant != caller(request).tenant:
        note(request, Action.UPLOAD_DELETED, _path(ref), outcome, whose=tenant)


def _path(ref: FileRef) -> str:
    return f"{ref.subfolder}/{ref.filename}" if ref.subfolder else ref.filename


def _key(ref: FileRef) -> str:
    return f"{ref.kind}/{_path(ref)}"


def _shown(ref: FileRef, upload: Upload, used_at: int) -> dict[str, Any]:
    return {
        "name": ref.filename,
        "subfolder": ref.subfolder,
        "type": ref.kind,
        "bytes": upload.size,
        "uploaded_at": upload.brought_at or None,
        "used_at": used_at or None,
    }
