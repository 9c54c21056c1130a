"""Every route that is not the gateway's own: passed on to one backend, streamed both ways."""

from __future__ import annotations

from aiohttp import web

from gateway.comfy.client import Unreachable
from gateway.fleet.backend import Backend
from gateway.jobs.job import State
from gateway.web.answers import problem
from gateway.web.parts import caller, parts
from gateway.web.streaming import forward
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
