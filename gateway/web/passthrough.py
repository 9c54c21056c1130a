"""Every route that is not the gateway's own: passed on to one backend, streamed both ways."""

from __future__ import annotations

import posixpath

from aiohttp import web

from gateway.comfy import wire
from gateway.comfy.client import BackendError, Unreachable
from gateway.comfy.outputs import FileRef
from gateway.fleet.backend import Backend
from gateway.jobs.job import State
from gateway.store.protocol import FileRecord
from gateway.web.answers import problem
from gateway.web.parts import caller, parts
from gateway.web.streaming import downstream_headers, forward, upstream_headers, upstream_query
from gateway.web.view import get_named

_SAFE = ("GET", "HEAD", "OPTIONS")


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Reads go to the primary, else the next healthy one; writes to where the caller's job runs, else the primary."""
    if any(part == ".." for part in request.path.split("/")):
        return problem(400, "invalid_path", "The path must not contain '..'")
    if request.method in _SAFE and "filename" in request.rel_url.query:
        named = await get_named(request)
        if named is not None:
            return named
    tries = _readers(request) if request.method in _SAFE else [_writer(request)]
    for backend in tries:
        if backend is None:
            break
        try:
            return await forward(request, backend, request.rel_url.raw_path)
        except Unreachable:
            continue
    return problem(503, "no_backend", "No backend can be reached", "try again later", {"Retry-After": "5"})


def _readers(request: web.Request) -> list[Backend]:
    return [backend for backend in parts(request).fleet.by_preference if backend.pulse.alive]


def _writer(request: web.Request) -> Backend | None:
    fleet, tenant = parts(request).fleet, caller(request).tenant
    for job in parts(request).engine.ledger.jobs(tenant):
        if job.state is State.RUNNING and job.backend is not None:
            return fleet.backends[job.backend]
    return fleet.primary


async def upload(request: web.Request) -> web.StreamResponse:
    """An upload goes to the primary, and the ledger remembers where: prompts that name it are sent there."""
    gateway = parts(request)
    backend = gateway.fleet.primary
    if backend is None:
        return problem(503, "no_backend", "No backend is configured")
    headers = upstream_headers(request.headers)
    path = request.rel_url.raw_path + upstream_query(request)
    try:
        async with backend.client.open("POST", path, headers=headers, data=request.content) as upstream:
            body = await upstream.read()
    except BackendError:
        return problem(503, "no_backend", "The upload could not be stored", "try again later", {"Retry-After": "5"})
    status, answer_headers = upstream.status, downstream_headers(upstream.headers)
    if status == 200:
        body = _remember(request, backend, body)
        gateway.catalogue.changed(backend)
    answer_headers.popall("Content-Length", None)
    return web.Response(body=body, status=status, headers=answer_headers)


def _remember(request: web.Request, backend: Backend, body: bytes) -> bytes:
    gateway, tenant = parts(request), caller(request).tenant
    try:
        answer = wire.loads(body)
        name, folder, kind = answer["name"], answer.get("subfolder") or "", answer.get("type") or "input"
    except (wire.MalformedJson, KeyError, TypeError, AttributeError):
        return body
    folder = posixpath.normpath(folder) if folder else ""
    ref = FileRef(kind, "" if folder == "." else folder, name)
    visible, is_news = gateway.engine.files.claim(tenant, backend.name, ref)
    if is_news:
        gateway.store.write([FileRecord(tenant, ref.kind, ref.subfolder, visible, backend.name, name)])
    return body if visible == name else wire.dumps({**answer, "name": visible})
