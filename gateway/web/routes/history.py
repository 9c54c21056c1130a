"""/history."""

from __future__ import annotations

from aiohttp import web

from gateway.comfy import json_codec
from gateway.jobs.state.job import owner_of
from gateway.store.protocol import HistoryRecord, StoreError
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import foreign_noted
from gateway.web.guard.context import caller, context_of, tells_whose, whose
from gateway.web.http.responses import empty, json_bytes, problem
from gateway.web.routes import large_responses
from gateway.web.routes.queue import BadBody, ids_of, read_object


async def get_history(request: web.Request) -> web.StreamResponse:
    """Answer with the caller's ended jobs; ``max_items`` and ``offset`` as in ComfyUI (execution.py, get_history)."""
    query = request.rel_url.query
    try:
        maximum = int(query["max_items"]) if "max_items" in query else None
        offset = int(query.get("offset", -1))
    except ValueError:
        return problem(400, "invalid_query", "max_items and offset must be integers")
    history, identity = context_of(request).engine.history, whose(request)
    own = list(history.of(None if identity.is_admin else [identity.tenant]))
    if offset < 0 and maximum is not None:
        offset = len(own) - maximum
    chosen = own[max(offset, 0) :]
    # If 0 items are asked for, return one, because ComfyUI compares after it has added an item.
    chosen = chosen if maximum is None else chosen[: max(maximum, 1)]
    if not chosen:
        return json_bytes(b"{}")
    return await _all(request, _one_for_each_id(request, chosen))


async def get_history_entry(request: web.Request) -> web.StreamResponse:
    """Answer with one ended job of the caller; with ``{}`` if there is none of this id."""
    history, identity = context_of(request).engine.history, whose(request)
    prompt_id = request.match_info["prompt_id"]
    ended = history.find(identity.tenant, prompt_id)
    if ended is None and identity.is_admin:
        ended = history.find_any(prompt_id)
    if ended is None:
        return json_bytes(b"{}")
    if (entry := history.cached_entry(ended)) is not None:
        return json_bytes(b"".join((b"{", *_item(request, ended, entry), b"}")))
    async with history.reading(ended):
        entry = await history.entry(ended)
        if entry is None:
            return json_bytes(b"{}")
        start, whole, end = _item(request, ended, entry)
        try:
            bulk = await large_responses.kept(context_of(request).engine.spool, ended.tenant, whole)
        except large_responses.Busy:
            return large_responses.busy()
        if bulk is None:
            return await large_responses.answer(request, (b"{", start, whole, end, b"}"))
        del entry, whole
    return await large_responses.from_disk(request, b"{%b" % start, bulk, end + b"}")


def _one_for_each_id(request: web.Request, chosen: list[HistoryRecord]) -> list[HistoryRecord]:
    """Return one job for each id, because an admin sees all tenants' jobs: its own, else the last of the list."""
    if not tells_whose(request):
        return chosen
    own = caller(request).tenant
    return list({ended.prompt_id: ended for ended in sorted(chosen, key=lambda ended: ended.tenant == own)}.values())


def _item(request: web.Request, ended: HistoryRecord, entry: bytes) -> tuple[bytes, memoryview, bytes]:
    """Return the bytes before an entry, the entry, and the bytes after it."""
    start = b"%b: " % json_codec.dumps(ended.prompt_id)
    if not tells_whose(request):
        return start, memoryview(entry), b""
    return start, memoryview(entry)[:-1], owner_of(ended.tenant, ended.backend)


async def _all(request: web.Request, chosen: list[HistoryRecord]) -> web.StreamResponse:
    """Answer with entries in one object. Long ones are sent as they are read, because a tenant may have gigabytes."""
    engine = context_of(request).engine
    response: web.StreamResponse | None = None
    pieces: list[bytes | memoryview] = [b"{"]
    size = 0
    try:
        for ended in chosen:
            entry = engine.history.cached_entry(ended)
            if entry is not None and size <= large_responses.MAX_AT_ONCE:
                pieces += (b", ", *_item(request, ended, entry)) if size else _item(request, ended, entry)
                size += len(entry)
                continue
            async with engine.history.reading(ended):
                entry = await engine.history.entry(ended)
                if entry is None:
                    continue
                start, whole, end = _item(request, ended, entry)
                bulk = await large_responses.kept(engine.spool, ended.tenant, whole)
                pieces += (b", ", start) if size else (start,)
                size += len(entry)
                if bulk is None:
                    pieces.append(whole)
                del entry, whole
            if bulk is not None or size > large_responses.MAX_AT_ONCE:
                response = response or await large_responses.begin(request)
                if request.method == "HEAD":
                    return response
                await large_responses.send(response, pieces)
                if bulk is not None:
                    await large_responses.send_bulk(request, response, bulk)
                pieces, size = [], 1
            pieces.append(end)
    except (StoreError, large_responses.Busy) as error:
        if response is None:
            if isinstance(error, large_responses.Busy):
                return large_responses.busy()
            raise
        # Cut off, or it would be taken for all there is.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(str(error)) from error
    pieces.append(b"}")
    if response is None:
        return json_bytes(b"".join(pieces))
    await large_responses.send(response, pieces)
    await response.write_eof()
    return response


async def post_history(request: web.Request) -> web.Response:
    """Delete the named history entries, or all of the caller's."""
    control, as_whom = context_of(request).engine.cancellation, whose(request)
    try:
        body = await read_object(request)
        ids = ids_of(body["delete"]) if "delete" in body else None
    except BadBody as error:
        return problem(400, "invalid_body", "The body can't be read", str(error))
    with foreign_noted(request, Action.HISTORY_DELETED, ids or ()) as touched:
        if body.get("clear"):
            await control.forget(as_whom.tenant, None, touched)
        if ids is not None:
            await control.forget(as_whom.sees, ids, touched)
    return empty()
