"""/view: a file, from the backend that has it. Never "ask all, first 200 wins" for what the ledger knows."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import urlencode

from aiohttp import web

from gateway.comfy.client import BackendError, Refused, Unreachable
from gateway.comfy.outputs import FileRef
from gateway.fleet.files import Holder
from gateway.web.answers import empty, problem
from gateway.web.parts import caller, parts
from gateway.web.streaming import relay, upstream_headers

KINDS = ("input", "output", "temp")
_ANNOTATION = re.compile(r"^(?P<path>.*?) ?\[(?P<kind>input|output|temp)\]$", re.DOTALL)


def requested_file(filename: str, subfolder: str | None, kind: str) -> FileRef | int:
    """The file that a query names, or the status that ComfyUI refuses it with (server.py, view_image)."""
    match = _ANNOTATION.match(filename)
    if match:
        filename, kind = match["path"], match["kind"]
    if not filename or filename[0] == "/" or ".." in filename or kind not in KINDS:
        return 400
    folder = posixpath.normpath(subfolder) if subfolder else ""
    if folder.startswith(("/", "..")) or "\0" in folder + filename:
        return 403
    return FileRef(kind, "" if folder == "." else folder, posixpath.basename(filename))


async def get_view(request: web.Request) -> web.StreamResponse:
    """A file of the caller's, streamed; Range and conditional headers are the owner's to answer."""
    query = request.rel_url.query
    if "filename" not in query:
        return empty(404)
    ref = requested_file(query["filename"], query.get("subfolder"), query.get("type", "output"))
    if isinstance(ref, int):
        return empty(ref)
    identity, files = caller(request), parts(request).engine.files
    holder = files.find(identity.tenant, ref)
    if holder is None and identity.is_admin:
        holder = files.find_any(ref)
    if holder is not None:
        return await _from_holder(request, ref, holder)
    # Unknown to the ledger: another run's, or put there by hand. A tenant that is isolated must not go looking.
    return empty(404) if identity.isolated and not identity.is_admin else await _from_anywhere(request, ref)


async def get_named(request: web.Request) -> web.StreamResponse | None:
    """A file that another route than /view is asked for by name, as custom nodes' viewers are.

    It comes from its owner, too, and an isolated tenant gets its own files alone. None if the route may go on as it is.
    """
    query, identity = request.rel_url.query, caller(request)
    ref = requested_file(query["filename"], query.get("subfolder"), query.get("type", "output"))
    holder = parts(request).engine.files.find(identity.tenant, ref) if isinstance(ref, FileRef) else None
    if isinstance(ref, FileRef) and holder is not None:
        return await _from_holder(request, ref, holder, request.rel_url.raw_path)
    return empty(404) if identity.isolated and not identity.is_admin else None


def _path(request: web.Request, ref: FileRef, filename: str, path: str = "/view") -> str:
    rest = [(k, v) for k, v in request.rel_url.query.items() if k not in ("filename", "subfolder", "type", "token")]
    return f"{path}?" + urlencode(
        [("filename", filename), ("subfolder", ref.subfolder), ("type", ref.kind), *rest]
        if ref.subfolder
        else [("filename", filename), ("type", ref.kind), *rest]
    )


async def _from_holder(request: web.Request, ref: FileRef, holder: Holder, path: str = "/view") -> web.StreamResponse:
    backend = parts(request).fleet.backends.get(holder.backend)
    if backend is None:
        return _unavailable(holder.backend, "not configured any more")
    headers = upstream_headers(request.headers)
    target = _path(request, ref, holder.filename, path)
    try:
        async with backend.client.open(request.method, target, headers=headers) as found:
            return await relay(request, found, (holder.filename, ref.filename))
    except Unreachable as error:
        if isinstance(error, Refused):
            parts(request).fleet.refused(backend)
        return _unavailable(backend.name, str(backend.health))
    except BackendError:
        if request.get("streaming"):
            raise
        return _unavailable(backend.name, str(backend.health))


def _unavailable(backend: str, state: str) -> web.Response:
    return problem(
        503,
        "owner_unavailable",
        "The backend that has this file can't be reached",
        f"backend '{backend}' is {state}; try again later",
        {"Retry-After": "5"},
        backend=backend,
        state=state,
    )


async def _from_anywhere(request: web.Request, ref: FileRef) -> web.StreamResponse:
    headers = upstream_headers(request.headers)
    for backend in parts(request).fleet.by_preference:
        if not backend.pulse.alive:
            continue
        try:
            async with backend.client.open(request.method, _path(request, ref, ref.filename), headers=headers) as found:
                if found.status != 404:
                    return await relay(request, found)
        except BackendError:
            if request.get("streaming"):
                raise
    return empty(404)
