"""The gateway's own routes: health, metrics, and the admin API."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from gateway.catalogue.packs import line_to_paste, untrusted
from gateway.comfy.node_review import review
from gateway.fleet.backend import Backend
from gateway.telemetry.audit import Action
from gateway.telemetry.metrics import CONTENT_TYPE
from gateway.web.guard.audit import note
from gateway.web.guard.context import Context, context_of
from gateway.web.http.request_keys import IDENTITY
from gateway.web.http.responses import json, problem

# Without a key nobody gets metrics that are newer than so many seconds, however often they are asked for.
METRICS_SECONDS = 1.0


async def healthz(_: web.Request) -> web.Response:
    """Whether the process serves requests."""
    return json({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Whether it serves, and how many backends are up. Prompts are taken while none is: they wait.

    It is ready also while the journal can't be written: new prompts get 503, but what runs is to be heard and read.
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
    """Everything Prometheus is told."""
    gateway = context_of(request)
    is_keyless = IDENTITY not in request and not gateway.keyring.is_open
    text = await gateway.metrics.text(METRICS_SECONDS if is_keyless else 0.0)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


async def get_backends(request: web.Request) -> web.Response:
    """Every backend and what is known of it (admins)."""
    gateway = context_of(request)
    described = [_described(gateway, backend) for backend in gateway.fleet.backends.values()]
    return json({"backends": described, "jobs_waiting": len(gateway.engine.ledger.waiting)})


def _described(gateway: Context, backend: Backend) -> dict[str, Any]:
    """Return all that is known of a backend."""
    queued, running = gateway.engine.ledger.load(backend.name)
    is_out = backend.name in gateway.fleet.ejections.ejected(time.monotonic())
    state = {"ejected": is_out, "ejected_for": backend.ejected_for if is_out else ""}
    return {**backend.describe(), **state, "jobs_queued": queued, "jobs_running": running}


async def get_packs(request: web.Request) -> web.Response:
    """GET /gateway/packs: the packs of custom nodes, and the setting that would trust those that wait for it."""
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


async def set_drain(request: web.Request) -> web.Response:
    """Stop or resume giving work to a backend: POST /gateway/backends/{name}/drain or …/resume (admins).

    A drained backend gives back what has not started. The answer says how many jobs it still has.
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
