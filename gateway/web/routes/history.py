"""/history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from gateway.comfy import json_codec
from gateway.jobs.files.entry_links import Answer, Ended
from gateway.jobs.state.job import owner_of
from gateway.store.protocol import HistoryRecord, StoreError
from gateway.telemetry.audit import Action
from gateway.web.guard.audit import foreign_noted
from gateway.web.guard.context import caller, context_of, tells_whose, whose
from gateway.web.http.base_path import link_prefix
from gateway.web.http.responses import empty, json_bytes, problem
from gateway.web.routes import large_responses
from gateway.web.routes.queue import BadBody, ids_of, read_object

# Entries whose links are signed together.
LINKED_AT_ONCE = 100


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
        files = await _files(request, [(ended, entry)])
        return json_bytes(b"".join((b"{", *_item(ended, entry, *files, tells_owner=tells_whose(request)), b"}")))
    async with history.reading(ended):
        entry = await history.entry(ended)
        if entry is None:
            return json_bytes(b"{}")
        files = await _files(request, [(ended, entry)])
        start, whole, end = _item(ended, entry, *files, tells_owner=tells_whose(request))
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


def _item(
    ended: HistoryRecord, entry: bytes, files: bytes = b"", *, tells_owner: bool
) -> tuple[bytes, memoryview, bytes]:
    """Return the bytes before an entry, the entry, and the bytes after it. `files` are what `_files` returns for it."""
    start = b"%b: " % json_codec.dumps(ended.prompt_id)
    if tells_owner:
        return start, memoryview(entry)[:-1], files + owner_of(ended.tenant, ended.backend)
    return (start, memoryview(entry)[:-1], files + b"}") if files else (start, memoryview(entry), b"")


async def _files(request: web.Request, entries: list[Ended], answer: Answer | None = None) -> list[bytes]:
    """Return for each entry the bytes about its stored files, or nothing if readers get no links to these."""
    links = context_of(request).engine.entry_links
    return [] if links is None else await links.members(entries, answer or Answer(link_prefix(request)))


async def _cached_files(
    request: web.Request, chosen: Sequence[HistoryRecord], answer: Answer | None
) -> dict[tuple[str, str], bytes]:
    """Return the bytes about the stored files of those entries that memory holds, by tenant and prompt_id."""
    history = context_of(request).engine.history
    entries = [(each, entry) for each in chosen if (entry := history.cached_entry(each)) is not None]
    files = await _files(request, entries, answer)
    # Let others run, because nothing above waits if all links are signed already.
    await asyncio.sleep(0)
    return {(each.tenant, each.prompt_id): told for (each, _), told in zip(entries, files, strict=True)}


async def _all(request: web.Request, chosen: list[HistoryRecord]) -> web.StreamResponse:
    """Answer with entries in one object. Long ones are sent as they are read, because a tenant may have gigabytes."""
    engine = context_of(request).engine
    response: web.StreamResponse | None = None
    pieces: list[bytes | memoryview] = [b"{"]
    answer = None if engine.entry_links is None else Answer(link_prefix(request))
    size, is_linked, files = 0, answer is not None, dict[tuple[str, str], bytes]()
    # Asked once, because there may be ten thousand entries.
    tells_owner, cached_entry = tells_whose(request), engine.history.cached_entry
    try:
        for place, ended in enumerate(chosen):
            if is_linked and place % LINKED_AT_ONCE == 0:
                files = await _cached_files(request, chosen[place : place + LINKED_AT_ONCE], answer)
            told = files.get((ended.tenant, ended.prompt_id)) if is_linked else b""
            entry = cached_entry(ended)
            if entry is not None and told is not None and size <= large_responses.MAX_AT_ONCE:
                item = _item(ended, entry, told, tells_owner=tells_owner)
                pieces += (b", ", *item) if size else item
                size += len(entry) + len(told)
                continue
            async with engine.history.reading(ended):
                entry = await engine.history.entry(ended)
                if entry is None:
                    continue
                own = await _files(request, [(ended, entry)], answer)
                start, whole, end = _item(ended, entry, *own, tells_owner=tells_owner)
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
