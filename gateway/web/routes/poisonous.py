"""The admin API of poisonous graphs: list them, and forget one."""

from __future__ import annotations

import time

from aiohttp import web

from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import note
from gateway.web.guard.context import context_of
from gateway.web.http.responses import json, problem

_PRIVATE = {"Cache-Control": "no-store"}


async def get_poisonous(request: web.Request) -> web.Response:
    """Answer with all graphs that are suspected or remembered as poisonous, the oldest first (admins)."""
    found = context_of(request).engine.poisonous.all(time.time())
    return json({"graphs": [graph.describe() for graph in found]}, headers=_PRIVATE)


async def delete_poisonous(request: web.Request) -> web.Response:
    """Forget a graph, so that prompts with it run again. Once this is answered, a crash does not bring it back."""
    engine, id_ = context_of(request).engine, request.match_info["id"]
    graph = engine.poisonous.forget(id_)
    if graph is None:
        details = "GET /gateway/poisonous lists those that there are"
        return problem(404, "unknown_graph", f"There is no poisonous graph '{id_[:100]}'", details, _PRIVATE)
    outcome = "ok"
    try:
        await engine.ledger.confirmed()
    except StoreError as error:
        outcome = str(error)
        return problem(503, "journal_unavailable", "This is not in the journal yet", outcome, {"Retry-After": "5"})
    finally:
        note(request, Action.GRAPH_FORGOTTEN, id_, outcome, whose=graph.record.tenant)
        engine.dispatcher.wake()
    return json({"forgotten": id_}, headers=_PRIVATE)
