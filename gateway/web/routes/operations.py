"""The gateway's own routes: health, metrics, and the admin API."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from gateway.catalogue.differences import differences
from gateway.catalogue.packs import line_to_paste, untrusted
from gateway.comfy.node_review import review
from gateway.fleet.backend import Backend
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import note
from gateway.web.guard.context import Context, context_of
from gateway.web.http.request_keys import IDENTITY
from gateway.web.http.responses import json, problem
from gateway.web.routes.routing import describe_models

# Seconds for which callers without a key share one text of the metrics, however often they ask.
METRICS_SECONDS = 1.0


async def healthz(_: web.Request) -> web.Response:
    """Answer 200, because the process serves requests."""
    return json({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Answer 200 if the gateway is ready, else 503; with the number of backends that are up.

    The gateway is ready without any backend, because prompts wait. It is ready while the journal can't be written: new
    prompts get 503, but clients still follow running jobs and read results.
    """
    gateway = context_of(request)
    up = sum(backend.eligible for backend in gateway.fleet.backends.values())
    ready = gateway.is_ready()
    body = {
        "status": "ready" if ready else "stopping" if gateway.started.is_set() else "starting",
        "backends_up": up,
        "backends": len(gateway.fleet.backends),
        "journal": gateway.store.trouble or "ok",
    }
    return json(body, 200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """Answer with all metrics for Prometheus."""
    gateway = context_of(request)
    is_keyless = IDENTITY not in request and not gateway.keyring.is_open
    accept = request.headers.get("Accept", "")
    text, content_type = await gateway.metrics.text(accept, METRICS_SECONDS if is_keyless else 0.0)
    return web.Response(body=text, headers={"Content-Type": content_type, "Vary": "Accept"})


async def get_backends(request: web.Request) -> web.Response:
    """Answer with a description of every backend (admins)."""
    gateway = context_of(request)
    described = [_described(gateway, backend) for backend in gateway.fleet.backends.values()]
    return json({"backends": described, "jobs_waiting": len(gateway.engine.ledger.waiting)})


def _described(gateway: Context, backend: Backend) -> dict[str, Any]:
    """Return a backend's description, with its ejection, its restarts and its jobs."""
    queued, running = gateway.engine.ledger.load(backend.name)
    is_out = backend.name in gateway.fleet.ejections.ejected(time.monotonic())
    state = {"ejected": is_out, "ejected_for": backend.ejected_for if is_out else ""}
    restarts = {"restart": gateway.restarts.describe(backend.name)}
    models = describe_models(gateway.engine.learning, backend.name)
    return {**backend.describe(), **state, **restarts, **models, "jobs_queued": queued, "jobs_running": running}


async def get_packs(request: web.Request) -> web.Response:
    """Answer with the packs of custom nodes, and the setting that would trust the packs that wait for trust."""
    gateway = context_of(request)
    found = await gateway.packs.packs()
    trusted = gateway.policies.trust
    body = {
        "packs": [pack.describe() for pack in found],
        "trusted": list(trusted),
        "to_trust_all": line_to_paste(untrusted(found), trusted),
        "reviewed_comfyui": review().version,
    }
    return json(body)


async def get_differences(request: web.Request) -> web.Response:
    """Answer with the node classes, models and versions that each backend lacks and another has (admins)."""
    gateway = context_of(request)
    known = gateway.catalogue.capabilities
    versions = {backend.name: backend.version for backend in gateway.fleet.backends.values()}
    found = await gateway.catalogue.compute(lambda rest: differences(known, versions, rest))
    return json({"backends": [{"name": name, **each.describe()} for name, each in found.items()]})


async def set_drain(request: web.Request) -> web.Response:
    """Drain or resume a backend: POST /gateway/backends/{name}/drain or …/resume (admins).

    The gateway takes back jobs that have not started on a drained backend. The answer has the number of its other jobs.
    """
    gateway, name = context_of(request), request.match_info["name"]
    backend = gateway.fleet.backends.get(name)
    if backend is None:
        names = ", ".join(gateway.fleet.backends)
        return problem(404, "unknown_backend", f"There is no backend '{name}'", f"there are: {names}")
    gateway.fleet.drain(backend, drained=request.match_info["action"] == "drain")
    note(request, Action.BACKEND_DRAINED if backend.drained else Action.BACKEND_RESUMED, name)
    if backend.drained:
        await gateway.engine.dispatcher.work_stealing.take_back(backend)
    else:
        gateway.engine.dispatcher.wake()
    return json(_described(gateway, backend))
