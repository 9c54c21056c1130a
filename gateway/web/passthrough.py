"""Every route that is not the gateway's own: passed on to one backend, streamed both ways."""

from __future__ import annotations

import re

from aiohttp import web

from gateway.comfy.client import Unreachable
from gateway.fleet.backend import Backend
from gateway.jobs.job import State
from gateway.tenants.roles import AnsweredHere, is_plain, plain, unquoted
from gateway.web.answers import empty, no_backend_allowed, problem
from gateway.web.parts import caller, parts, policy
from gateway.web.streaming import forward
from gateway.web.view import get_named

ANSWERED_HERE = web.AppKey("answered_here", AnsweredHere)
_SAFE = ("GET", "HEAD")
# A way out of where a path seems to lead, for a backend on Windows too; and what no path has.
_ODD = re.compile(r"(^|[/\\])\.\.([/\\]|$)|[\x00-\x1f\x7f]")


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Reads go to the primary, else the next healthy one; writes to where the caller's job runs, else the primary."""
    path = unquoted(request.path)
    if plain(path).parts[:1] == ("gateway",):
        return problem(
            404, "unknown_route", "There is no such route", "GET /gateway/openapi.json tells those there are"
        )
    if path in request.app[ANSWERED_HERE] and not is_plain(request.path):
        # Another spelling of a route that is answered here with the caller's own. No ComfyUI knows it; a proxy before
        # one may (nginx merges slashes), and the answer would be everybody's.
        return empty(404)
    if not _ODD.search(path) and request.method in _SAFE and "filename" in request.rel_url.query:
        named = await get_named(request)
        if named is not None:
            return named
    return await hand_on(request)


async def hand_on(request: web.Request) -> web.StreamResponse:
    """To a backend, whatever it is."""
    if _ODD.search(unquoted(request.path)):
        return problem(400, "invalid_path", "The path must not contain '..', nor control characters")
    if policy(request).lacks_backends:
        return no_backend_allowed()
    for backend in _readers(request) if request.method in _SAFE else [_writer(request)]:
        if backend is None:
            break
        try:
            return await forward(request, backend, request.rel_url.raw_path)
        except Unreachable:
            continue
    return problem(503, "no_backend", "No backend can be reached", "try again later", {"Retry-After": "5"})


def _readers(request: web.Request) -> list[Backend]:
    return parts(request).fleet.alive(policy(request).allowed)


def _writer(request: web.Request) -> Backend | None:
    fleet, tenant, allowed = parts(request).fleet, caller(request).tenant, policy(request).allowed
    for job in parts(request).engine.ledger.jobs(tenant):
        if job.state is State.RUNNING and job.backend is not None and (allowed is None or job.backend in allowed):
            return fleet.backends[job.backend]
    primary = fleet.primary if allowed is None else None
    return primary or next(iter(fleet.alive(allowed)), None)
