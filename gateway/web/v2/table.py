"""The table of routes of the Comfy API v2."""

from __future__ import annotations

import re

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.web.http.v2_errors import COMFYUIS, PREFIX, V2Error
from gateway.web.v2.answers import answering
from gateway.web.v2.asset_routes import delete_asset, get_asset, get_content, head_by_hash, post_asset, post_from_hash
from gateway.web.v2.event_routes import get_events
from gateway.web.v2.job_routes import cancel_job, get_job, get_jobs, get_workflow, post_job
from gateway.web.v2.other_routes import get_health, get_openapi

_JOB = f"{PREFIX}/jobs/{{job_id}}"
# Paths with two names of their own come before those with an id in their place.
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", f"{PREFIX}/jobs", post_job),
    ("GET", f"{PREFIX}/jobs", get_jobs),
    ("GET", _JOB, get_job),
    ("GET", f"{_JOB}/workflow", get_workflow),
    ("GET", f"{_JOB}/events", get_events),
    ("POST", f"{_JOB}/cancel", cancel_job),
    ("POST", f"{PREFIX}/assets", post_asset),
    ("POST", f"{PREFIX}/assets/from-hash", post_from_hash),
    ("HEAD", f"{PREFIX}/assets/by-hash/{{hash}}", head_by_hash),
    ("GET", f"{PREFIX}/assets/{{asset_id:(?!from-hash$)[^/]+}}", get_asset),
    ("GET", f"{PREFIX}/assets/{{asset_id}}/content", get_content),
    ("DELETE", f"{PREFIX}/assets/{{asset_id:(?!from-hash$)[^/]+}}", delete_asset),
    ("GET", f"{PREFIX}/health", get_health),
    ("GET", f"{PREFIX}/openapi.json", get_openapi),
)
# All paths below /api/v2 that are not ComfyUI's own.
REST = f"{PREFIX}{{rest:(?:/(?!(?:{'|'.join(COMFYUIS)})(?:/|$)).*)?}}"
_VARIABLE = re.compile(r"\{\w+(?::(.+?))?\}(?=/|$)")


def _pattern(template: str) -> re.Pattern[str]:
    # The text between the variables, then a variable's pattern, by turns.
    pieces = enumerate(_VARIABLE.split(template))
    return re.compile("".join(f"(?:{piece or '[^/]+'})" if n % 2 else re.escape(piece) for n, piece in pieces))


_METHODS = [(_pattern(template), method) for method, template, _ in ROUTES]


def methods_of(path: str) -> list[str]:
    """Return the methods of a path; none if there is no such route."""
    found = [method for pattern, method in _METHODS if pattern.fullmatch(path)]
    return [*found, "HEAD"] if "GET" in found else found


@answering
async def refuse_unknown(request: web.Request) -> web.StreamResponse:
    """Refuse a path below /api/v2 that there is not, or a method that its path has not."""
    if methods := methods_of(request.path):
        said = f"{request.method} is not answered here; use {', '.join(methods)}."
        raise V2Error(405, "method_not_allowed", said, None, {"Allow": ", ".join(methods)})
    raise V2Error(404, "not_found", "There is no such route.")
