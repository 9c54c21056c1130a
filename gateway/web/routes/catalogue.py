"""/object_info, the model lists, /system_stats and /features, from the gateway's catalogue and probes."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp import web

from gateway.catalogue import merging
from gateway.catalogue.listings import NobodyKnows
from gateway.comfy import json_codec
from gateway.comfy.client import BadAnswer
from gateway.comfy.file_refs import FileRef
from gateway.tenants.roles import unquoted
from gateway.web.guard.context import Context, caller, context_of, policy, readable
from gateway.web.http.content_safety import defuse
from gateway.web.http.error_bodies import FROM_BACKEND
from gateway.web.http.responses import JSON, empty, json, json_bytes, no_backend_allowed, problem
from gateway.web.routes.proxying import downstream_headers, send_whole, upstream_query

# An absolute path, one of Windows' drives, a way up, or a control character.
_ELSEWHERE = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.?([/\\]|$)|[\x00-\x1f\x7f]")

# Names of files that are looked at in one turn of the event loop.
LISTED_AT_ONCE = 2_000


def _none_yet(request: web.Request) -> web.Response:
    if policy(request).lacks_backends:
        return no_backend_allowed()
    details = "no backend has answered since the gateway started"
    return problem(503, "no_backend", "The fleet is not known yet", details, {"Retry-After": "2"})


def _none_answered(request: web.Request) -> web.Response:
    if policy(request).lacks_backends:
        return no_backend_allowed()
    details = "all backends that may be asked are down, or did not answer in time; send the request again"
    return problem(503, "no_backend", "No backend answered", details, {"Retry-After": "2"})


async def _refresh(request: web.Request) -> None:
    """Look for new models on the caller's backends, if it is time for that."""
    await context_of(request).engine.refresher.refresh(policy(request).allowed)


async def get_object_info(request: web.Request) -> web.StreamResponse:
    """Answer with all node classes of the fleet."""
    await _refresh(request)
    merged_catalogue = await context_of(request).catalogue.seen_by(policy(request))
    if merged_catalogue is None:
        return _none_yet(request)
    body = await context_of(request).catalogue.body(merged_catalogue, caller(request).tenant, policy(request).view)
    headers = {"Content-Type": JSON, "ETag": body.etag, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
    if body.etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return await send_whole(request, body.compressed, {**headers, "Content-Encoding": "gzip"})
    return await send_whole(request, body.plain, headers)


async def get_node_class(request: web.Request) -> web.Response:
    """Answer with one node class; with ``{}`` if the fleet does not have it."""
    await _refresh(request)
    merged_catalogue = await context_of(request).catalogue.seen_by(policy(request))
    if merged_catalogue is None:
        return _none_yet(request)
    name = request.match_info["node_class"]
    own = list(context_of(request).engine.files.uploads(caller(request).tenant))
    found = merged_catalogue.node_class(name, own)
    return json_bytes(json_codec.dumps({} if found is None else {name: found}))


def _names(request: web.Request) -> str | None:
    """Return the path of a request, without /api; None if a name in it would lead out of its folder, on any platform.

    Older ComfyUIs join a model's name to its folder unchecked, and a proxy before one may resolve dots in a path.
    """
    names = [unquoted(name) for name in request.match_info.values()]
    fixed = request.match_info.get("path") is None and any("/" in name for name in names)
    if fixed or any(_ELSEWHERE.search(name) for name in names):
        return None
    return request.rel_url.raw_path.removeprefix("/api")


async def get_listing(request: web.Request) -> web.Response:
    """Answer with the union of the backends' lists of names."""
    path = _names(request)
    if path is None:
        return empty(404)
    await _refresh(request)
    try:
        listed = await context_of(request).catalogue.listings.listing(path, policy(request))
        return json(await _without_deleted(request, listed) if "kind" in request.match_info else listed)
    except NobodyKnows:
        return _none_answered(request)
    except BadAnswer as error:
        return empty(error.status)


async def _without_deleted(request: web.Request, listed: list[Any]) -> list[Any]:
    """Return the list of a folder's files without those that their owners deleted, in short steps."""
    engine, kind, left = context_of(request).engine, request.match_info["kind"], list[Any]()
    if not len(engine.files.deleted):
        return listed
    for start in range(0, len(listed), LISTED_AT_ONCE):
        for name in listed[start : start + LISTED_AT_ONCE]:
            ref = FileRef(kind, "", str(name).removesuffix(f" [{kind}]"))
            if engine.files.find_any(ref) is not None or not engine.inputs.is_hidden(ref):
                left.append(name)
        await asyncio.sleep(0)
    return left


async def get_from_any(request: web.Request) -> web.Response:
    """Answer with a model's metadata or preview from any backend, because some backends may lack the model."""
    query, path = upstream_query(request), _names(request)
    if path is None or _ELSEWHERE.search(unquoted(request.rel_url.query.get("filename", ""))):
        return empty(404)
    if _names_denied_model(request):
        return empty(404)
    try:
        answer = await context_of(request).catalogue.listings.from_any(path + query, policy(request).allowed)
    except NobodyKnows:
        return _none_answered(request)
    headers = downstream_headers(answer.headers)
    for name in ("Content-Encoding", "Content-Length"):
        headers.popall(name, None)
    defuse(headers, request.headers.get("Sec-Fetch-Dest"))
    request[FROM_BACKEND] = True
    return web.Response(body=answer.body, status=answer.status, headers=headers)


def _names_denied_model(request: web.Request) -> bool:
    """Return True if a request names a refused model: /view_metadata/{folder}?filename=…, or
    /experiment/models/preview/{folder}/{path_index}/{filename}."""
    named = (request.rel_url.query.get("filename"), request.match_info.get("path", "").split("/", 2)[-1])
    return any(name and policy(request).denies_model(name) for name in named)


async def get_system_stats(request: web.Request) -> web.Response:
    """Answer with all devices of the fleet, as of the last probe."""
    visible = readable(request)
    backends = [b for b in context_of(request).fleet.by_preference if visible is None or b.name in visible]
    known = [(b.name, b.stats) for b in backends if b.stats is not None]
    alive = [(name, stats) for name, stats in known if context_of(request).fleet.backends[name].pulse.alive]
    named = alive or known
    if not named:
        return _none_yet(request)
    stats = merging.system_stats([(name, stats.raw) for name, stats in named])
    if not caller(request).is_admin and isinstance(argv := stats["system"].get("argv"), list):
        # Redact a backend's arguments, because its address and its folders are for admins alone.
        stats["system"]["argv"] = argv[:1]
    return json(stats)


def shared_features(gateway: Context, tenant: str) -> dict[str, object]:
    """Return the feature flags for clients of a tenant: the flags that all its backends share."""
    allowed = gateway.policies.of(tenant).allowed
    backends = [b for b in gateway.fleet.by_preference if allowed is None or b.name in allowed]
    flags = [b.features for b in backends if b.features]
    shared = merging.features(flags, gateway.settings.server.max_body)
    # The asset library lists everybody's files, so isolated users must not read it. The web UI works without it.
    return {**shared, "assets": False} if gateway.keyring.is_isolated and "assets" in shared else shared


async def get_features(request: web.Request) -> web.Response:
    """Answer with the feature flags that all of the caller's backends share."""
    return json(shared_features(context_of(request), caller(request).tenant))
