"""/history."""

from __future__ import annotations

from aiohttp import web

from gateway.comfy import wire
from gateway.jobs.job import WHOSE
from gateway.store.protocol import HistoryRecord
from gateway.telemetry.audit import Action
from gateway.web.answers import empty, json_bytes, problem
from gateway.web.auditing import foreign_noted
from gateway.web.parts import caller, parts, tells_whose, whose
from gateway.web.queue import BadBody, ids_of, read_object


async def get_history(request: web.Request) -> web.Response:
    """The caller's ended jobs, ComfyUI's ``max_items`` and ``offset`` honoured (execution.py, get_history)."""
    query = request.rel_url.query
    try:
        most = int(query["max_items"]) if "max_items" in query else None
        offset = int(query.get("offset", -1))
    except ValueError:
        return problem(400, "invalid_query", "max_items and offset must be integers")
    history, identity = parts(request).engine.history, whose(request)
    own = list(history.of(None if identity.is_admin else [identity.tenant]))
    if offset < 0 and most is not None:
        offset = len(own) - most
    chosen = own[max(offset, 0) :]
    # ComfyUI compares after it has added an item, so it gives one where none was asked for.
    chosen = chosen if most is None else chosen[: max(most, 1)]
    entries = [(ended, await history.entry(ended)) for ended in chosen]
    return json_bytes(_object(request, [(ended, entry) for ended, entry in entries if entry is not None]))


async def get_history_entry(request: web.Request) -> web.Response:
    """One ended job of the caller's; ``{}`` for an id that is not one."""
    history, identity = parts(request).engine.history, whose(request)
    prompt_id = request.match_info["prompt_id"]
    ended = history.find(identity.tenant, prompt_id)
    if ended is None and identity.is_admin:
        ended = history.find_any(prompt_id)
    entry = await history.entry(ended) if ended is not None else None
    return json_bytes(b"{}" if ended is None or entry is None else _object(request, [(ended, entry)]))


def _object(request: web.Request, entries: list[tuple[HistoryRecord, bytes]]) -> bytes:
    if tells_whose(request):
        own = caller(request).tenant
        # Of two tenants' jobs with the same id there can be one here: an admin's own, else the one that ended last.
        entries.sort(key=lambda found: found[0].tenant == own)
        by_id = {ended.prompt_id: (ended, entry) for ended, entry in entries}
        whose_key = WHOSE.encode()
        entries = [
            (ended, b'%b, "%b": %b}' % (entry[:-1], whose_key, wire.dumps(ended.tenant)))
            for ended, entry in by_id.values()
        ]
    items = (b"%b: %b" % (wire.dumps(ended.prompt_id), entry) for ended, entry in entries)
    return b"{" + b", ".join(items) + b"}"


async def post_history(request: web.Request) -> web.Response:
    """Forget entries: those named, or all of the caller's."""
    control, identity = parts(request).engine.control, caller(request)
    try:
        body = await read_object(request)
        ids = ids_of(body["delete"]) if "delete" in body else None
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error))
    if body.get("clear"):
        await control.forget(identity.tenant, None)
    if ids is not None:
        with foreign_noted(request, Action.HISTORY_DELETED) as touched:
            await control.forget(whose(request).sees, ids, touched)
    return empty()
