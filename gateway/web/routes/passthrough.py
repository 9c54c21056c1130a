"""Pass each route that is not the gateway's own on to one backend, streamed both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable

from aiohttp import web

from gateway.comfy.client import Unreachable
from gateway.fleet.backend import Backend
from gateway.tenants.roles import AnsweredHere, is_plain, plain, unquoted
from gateway.web.guard.context import context_of, policy
from gateway.web.http.base_path import shown_path
from gateway.web.http.error_bodies import OPENAPI
from gateway.web.http.responses import empty, no_backend_allowed, problem
from gateway.web.routes import custom_routes
from gateway.web.routes.proxying import forward
from gateway.web.routes.view import get_named

ANSWERED_HERE = web.AppKey("answered_here", AnsweredHere)


class OwnMethods:
    """Methods of the gateway's own routes, by their paths.

    Args:
        routes: the method and the template of each.
    """

    def __init__(self, routes: Iterable[tuple[str, str]]) -> None:
        self._known: dict[re.Pattern[str], list[str]] = {}
        for method, template in routes:
            # The text between the variables, then a variable's pattern, by turns.
            pieces = enumerate(_VARIABLE.split(template))
            pattern = "".join(f"(?:{piece or '[^/]+'})" if n % 2 else re.escape(piece) for n, piece in pieces)
            self._known.setdefault(re.compile(pattern), []).extend([method] if method != "GET" else ["GET", "HEAD"])

    def of(self, path: str) -> list[str]:
        """Return the methods that a path has; none if it is no route of the gateway's own."""
        return next((methods for pattern, methods in self._known.items() if pattern.fullmatch(path)), [])


OWN_METHODS = web.AppKey("own_methods", OwnMethods)
_SAFE = ("GET", "HEAD")
# A variable of a route's template, with the pattern that it may have.
_VARIABLE = re.compile(r"\{\w+(?::([^}]*))?\}")
# A way out of the folder that a path names, also for a backend on Windows; and characters that no path has.
_ODD = re.compile(r"(^|[/\\])\.\.([/\\]|$)|[\x00-\x1f\x7f]")


async def pass_on(request: web.Request) -> web.StreamResponse:
    """Pass a read on to the primary, else to the next healthy backend; a write to its owner (`custom_routes.py`)."""
    path = unquoted(request.path)
    if methods := request.app[OWN_METHODS].of(path):
        details = (
            f"{shown_path(request, request.path)} is not for {request.method}; use one of the methods that Allow names"
        )
        return problem(405, "method_not_allowed", "Method Not Allowed", details, {"Allow": ", ".join(methods)})
    if plain(path).parts[:1] == ("gateway",):
        details = f"GET {shown_path(request, OPENAPI)} tells those there are"
        return problem(404, "unknown_route", "There is no such route", details)
    if path in request.app[ANSWERED_HERE] and not is_plain(request.path):
        # Refuse another spelling of a route that the gateway answers. No ComfyUI knows it, but a proxy before one may
        # (nginx merges slashes), and its answer would show everybody's jobs and files.
        return empty(404)
    if not _ODD.search(path) and request.method in _SAFE and "filename" in request.rel_url.query:
        named = await get_named(request)
        if named is not None:
            return named
    return await hand_on(request, custom=True)


async def hand_on(request: web.Request, *, custom: bool = False) -> web.StreamResponse:
    """Pass any request on to a backend: to the primary; if it is for a `custom` node's route, to its owner."""
    if _ODD.search(unquoted(request.path)):
        return problem(400, "invalid_path", "The path must not contain '..', nor control characters")
    if policy(request).lacks_backends:
        return no_backend_allowed()
    if custom:
        try:
            answer = await custom_routes.pass_to_owner(request)
        except Unreachable:
            return _none_reached()
        if answer is not None:
            return answer
    backends = _alive(request)
    for backend in backends if request.method in _SAFE else backends[:1]:
        try:
            return await forward(request, backend, request.rel_url.raw_path)
        except Unreachable:
            continue
    return _none_reached()


def _none_reached() -> web.Response:
    return problem(503, "no_backend", "No backend can be reached", "try again later", {"Retry-After": "5"})


def _alive(request: web.Request) -> list[Backend]:
    """Return the living backends that the caller may use, the primary first."""
    return context_of(request).fleet.alive(policy(request).allowed)
