"""The admin API of routing: show what was learned of runs, and forget it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from aiohttp import web

from gateway.jobs.scheduling.learning import CACHE_HINT, Learning
from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.telemetry.tasks import in_turns
from gateway.web.guard.audit import note
from gateway.web.guard.context import context_of
from gateway.web.http.responses import json, problem

# Models of a backend that are shown, those that ran last.
MAX_SHOWN = 100
ALL = "all"
_PRIVATE = {"Cache-Control": "no-store"}


async def get_routing(request: web.Request) -> web.Response:
    """Answer with what was learned of runs: the speed of each backend, its load times, and the models that it holds."""
    gateway = context_of(request)
    found = await in_turns(describing(gateway.engine.learning, list(gateway.fleet.backends)))
    return json(found, headers=_PRIVATE)


async def delete_times(request: web.Request) -> web.Response:
    """Forget what was learned of runs, on one backend or on all. Once this is answered, a crash does not bring it back.

    A backend whose GPU was replaced learns its speed anew.
    """
    gateway, name = context_of(request), request.query.get("backend")
    learning, outcome = gateway.engine.learning, "ok"
    if name is None:
        learning.forget_all()
    elif name in gateway.fleet.backends:
        learning.forget(name)
    else:
        names = ", ".join(gateway.fleet.backends)
        return problem(404, "unknown_backend", f"There is no backend '{name[:100]}'", f"there are: {names}", _PRIVATE)
    try:
        await gateway.engine.kept_learning.write()
    except StoreError as error:
        outcome = str(error)
        return problem(503, "journal_unavailable", "This is not in the journal yet", outcome, {"Retry-After": "5"})
    finally:
        note(request, Action.TIMES_FORGOTTEN, name or ALL, outcome)
        gateway.engine.dispatcher.wake()
    return json({"forgotten": name or ALL}, headers=_PRIVATE)


async def delete_shortages(request: web.Request) -> web.Response:
    """Forget that jobs ran out of memory, of one signature or of all. Once this is answered, a crash keeps it so."""
    engine, signature = context_of(request).engine, request.query.get("signature")
    count, outcome = engine.learning.out_of_memory.forget(signature), "ok"
    if not count and signature is not None:
        message = f"There is no signature '{signature[:100]}' that ran out of memory"
        return problem(404, "unknown_signature", message, "GET /gateway/routing lists those that there are", _PRIVATE)
    try:
        await engine.kept_learning.write()
    except StoreError as error:
        outcome = str(error)
        return problem(503, "journal_unavailable", "This is not in the journal yet", outcome, {"Retry-After": "5"})
    finally:
        note(request, Action.OUT_OF_MEMORY_FORGOTTEN, signature or ALL, outcome)
        engine.dispatcher.wake()
    return json({"forgotten": signature or ALL}, headers=_PRIVATE)


def describing(learning: Learning, names: Iterable[str]) -> Generator[None, None, dict[str, Any]]:
    """Return what was learned of runs on some backends, in steps."""
    ran, backends = learning.times.models_by_backend(), []
    for name in names:
        backends.append(_described(learning, name, ran.get(name, [])[-MAX_SHOWN:]))
        yield
    shortages = learning.out_of_memory.describe()
    return {"signatures": learning.times.signatures, "backends": backends, "out_of_memory": shortages}


def _described(learning: Learning, name: str, models: Iterable[str]) -> dict[str, Any]:
    times = learning.times
    return {
        "name": name,
        "speed": round(1 / times.speed(name), 3) if times.knows(name) else None,
        "holds": sorted(learning.held(name).held),
        "models": [
            {
                "model": model,
                "speed": round(1 / times.factor(model, name), 3),
                "load_seconds": round(times.load_seconds(model, name), 3) if times.knows_load(model, name) else None,
            }
            for model in models
        ],
        **describe_models(learning, name),
    }


def describe_models(learning: Learning, name: str) -> dict[str, Any]:
    """Return how a backend keeps models in memory, the loads since it started, and what would spare them."""
    launch = learning.launch(name)
    held = launch.held
    return {
        "keeps_models": str(held.options.keeping) if launch.argv is not None else None,
        "has_cache_options": not held.options.is_default if launch.argv is not None else None,
        "model_loads": held.loads,
        "model_reloads": held.reloads,
        "reload_seconds": round(launch.reload_seconds, 1),
        "hint": CACHE_HINT if launch.keeps_too_few else None,
    }
