"""Routes of custom nodes: a write goes to the process that it is for, and so do reads of state that a process keeps.

`write_owner.py` decides by the ids that a request names. Ids count only within the caller's own tenant: another
tenant's id names nothing, and leads to no backend that keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from aiohttp import web

from gateway.catalogue.path_families import Family, parts_below
from gateway.comfy.pack_routes import Keeps
from gateway.fleet.backend import Backend
from gateway.jobs.state import named_ids
from gateway.jobs.state.job import Job
from gateway.jobs.state.named_ids import NamedIds, is_state_id
from gateway.jobs.state.request_fields import Fields, fields_of
from gateway.jobs.state.transitions import QUEUED_THERE, State
from gateway.jobs.state.write_owner import OpenJob, Owner, Unclear, named_owner, unnamed_owner
from gateway.web.guard.context import caller, context_of, policy
from gateway.web.guard.cross_origin import READS
from gateway.web.http.request_body import read_body
from gateway.web.http.responses import problem
from gateway.web.routes.proxying import forward

# Bytes of prompts in which the ids of one request are looked for, the newest prompts first.
MAX_SEARCHED = 8 * 2**20
# Types of bodies that name ids, while files seldom do.
_NAMING = ("application/json", "application/x-www-form-urlencoded", "text/plain")
# Methods that make a state anew, so that one that was lost is no hindrance.
_MAKES = ("PUT", "POST")
_ADVICE = (
    "name the prompt that it is for, as prompt_id in the query or in the body; or, if the path is about state that a "
    "custom node keeps in its process, have the operator list its prefix in routes.sticky"
)


_SEVERAL = f"your prompts are on different backends, and any of them may be meant: {_ADVICE}"
_NOBODYS = f"none of your prompts that run is meant for sure, and some prompt might take this for its own: {_ADVICE}"
_TAKEN = "no backend can take a state of this id; choose another id"
_WEAK = "this can't be told from others' states; take an id of 4 to 128 letters, digits and _.:+-, with a digit"


async def pass_to_owner(request: web.Request) -> web.StreamResponse | None:
    """Pass a request on to the one backend that it is for; return None if any backend is right.

    Raises:
        BackendError: the backend did not answer.
    """
    family = context_of(request).engine.families.of(request.path)
    keeps_state = family is not None and family.keeps is Keeps.STATE
    if request.method in READS:
        return await _read_state(request, family) if family is not None and keeps_state else None
    if family is not None and family.keeps is Keeps.NOTHING:
        return None
    body = await _body(request)
    named = _named(request, family, body)
    found = _owner(request, family if keeps_state else None, named)
    if isinstance(found, web.Response):
        return found
    is_foreseen = found is not None and keeps_state
    if family is not None and keeps_state and (refusal := _not_kept_apart(request, family, named, found)):
        return _unclear(refusal)
    if found is None:
        first = next(iter(context_of(request).fleet.alive(policy(request).allowed)), None)
        if first is None:
            return None
        found = Owner(first.name)
    backend = context_of(request).fleet.backends[found.backend]
    is_blind = _is_blind(request, body, named) or (family is not None and family.keeps is Keeps.WAITING)
    if not is_foreseen and _may_reach_another(request, backend, named, is_blind=is_blind):
        return _unclear(_NOBODYS)
    renames = _renames(request, found)
    read = _reader(request, backend.name, family if keeps_state else None, named)
    return await forward(request, backend, request.rel_url.raw_path, body=body, renames=renames, read=read)


async def _read_state(request: web.Request, family: Family) -> web.StreamResponse | None:
    """Pass a read of a state on to the backend that keeps it."""
    gateway, identity = context_of(request), caller(request)
    named = _named(request, family, None)
    ids = _state_ids(named, family)
    strange = _strange(request, ids)
    is_weak = not ids and (bool(named.ids) or not named.is_whole)
    is_closed = identity.isolated and (bool(strange) or is_weak)
    if not identity.is_admin and (is_closed or gateway.engine.bindings.others(identity.tenant, strange)):
        # Nobody may read another's state by its id, nor beside an id of its own. The answer is the same if there is no
        # such id.
        shown = (*strange, *named.ids, "so long an id")[0]
        return problem(404, "state_unknown", "There is no such state", f"nothing of this caller's is kept at {shown}")
    for id_ in ids:
        binding = gateway.engine.bindings.of(identity.tenant, id_)
        if binding is None:
            continue
        if gateway.engine.bindings.is_lost(binding.backend, binding.at):
            return _lost(id_)
        if _may_use(request, binding.backend):
            backend = gateway.fleet.backends[binding.backend]
            return await forward(request, backend, request.rel_url.raw_path)
    now, client_id = time.monotonic(), named.client_id
    place = None if ids else gateway.engine.bindings.session(identity.tenant, client_id, family.name, now)
    if place is None or not _may_use(request, place):
        return None
    return await forward(request, gateway.fleet.backends[place], request.rel_url.raw_path)


async def _body(request: web.Request) -> bytes | None:
    """Read a short body, because it may name ids; None if it is passed on unread."""
    length = request.content_length
    is_short = length is not None and 0 < length <= named_ids.MAX_READ
    return await read_body(request) if is_short and "Content-Encoding" not in request.headers else None


def _named(request: web.Request, family: Family | None, body: bytes | None) -> NamedIds:
    fields = fields_of(body, request.content_type, request.charset) if body else Fields()
    return named_ids.in_request(parts_below(request.path, family), request.rel_url.query.items(), fields)


def _state_ids(named: NamedIds, family: Family | None) -> list[str]:
    """Return the ids of states that a request names; none for a path behind which there is no state."""
    return [each for each in named.ids if is_state_id(each)] if family is not None else []


def _strange(request: web.Request, ids: Iterable[str]) -> list[str]:
    """Return the ids under which no backend keeps a state of the caller's."""
    bindings, tenant = context_of(request).engine.bindings, caller(request).tenant
    return [each for each in ids if bindings.of(tenant, each) is None]


def _not_kept_apart(request: web.Request, family: Family, named: NamedIds, owner: Owner | None) -> str:
    """Return the reason why a state must not be written, because it may be another tenant's; empty if there is none."""
    identity, ids = caller(request), _state_ids(named, family)
    others = context_of(request).engine.bindings.others(identity.tenant, _strange(request, ids))
    if owner is not None and owner.backend in others:
        return _TAKEN
    is_weak = not ids and (bool(named.ids) or not named.is_whole)
    # A POST may name an action in its path, such as "prepare".
    return _WEAK if is_weak and request.method != "POST" and identity.isolated and not identity.is_admin else ""


def _may_use(request: web.Request, backend: str) -> bool:
    allowed = policy(request).allowed
    return backend in context_of(request).fleet.backends and (allowed is None or backend in allowed)


def _is_blind(request: web.Request, body: bytes | None, named: NamedIds) -> bool:
    """Return True if a write may name something that the gateway does not see.

    A team's long files are let pass. A stranger may call anything a file.
    """
    is_unread = body is None and request.can_read_body
    return not named.is_whole or (is_unread and (caller(request).isolated or request.content_type in _NAMING))


def _may_reach_another(request: web.Request, backend: Backend, named: NamedIds, *, is_blind: bool) -> bool:
    """Return True if a running job of another tenant may take a write for its own.

    Args:
        is_blind: True if the write may name something that the gateway can't see.
    """
    ledger, tenant = context_of(request).engine.ledger, caller(request).tenant
    running = [job for job in ledger.jobs_on(backend.name) if job.state is State.RUNNING]
    # A ComfyUI runs one prompt at a time, so those that began before the caller's have ended there.
    began = max((job.start_time or 0 for job in running if job.tenant == tenant), default=0)
    others = [job for job in running if job.tenant != tenant and (job.start_time is None or job.start_time >= began)]
    if is_blind:
        return bool(others)
    return any(job.live.node in named.ids or any(id_ in job.live.ids for id_ in named.ids) for job in others)


def _owner(request: web.Request, state: Family | None, named: NamedIds) -> Owner | web.Response | None:
    """Return the owner of a write, or its refusal; None if any backend is right.

    Args:
        state: the family of its path, if that keeps state.
    """
    gateway, tenant = context_of(request), caller(request).tenant
    usable = {backend.name for backend in gateway.fleet.backends.values() if _may_use(request, backend.name)}
    bindings, jobs = gateway.engine.bindings, _jobs(request, named)
    bound = {}
    for id_ in named.ids:
        binding = bindings.of(tenant, id_)
        if binding is None:
            continue
        if not bindings.is_lost(binding.backend, binding.at) and binding.backend in usable:
            bound[id_] = binding.backend
        elif request.method not in _MAKES:
            return _lost(id_)
    found = named_owner(named.ids, [_open(job) for job in jobs], bound, _naming(jobs, named.ids))
    if len(usable) == 1 and not isinstance(found, Owner):
        found = None
    if found is None:
        found = _ended(request, named, usable)
    if found is None and state is not None:
        return _begin(request, state, named, usable)
    if found is None:
        found = unnamed_owner(map(_open, jobs), usable)
    if found is Unclear.WAITING:
        details = "the prompt waits in the gateway, and no backend has it; send this again once the prompt runs"
        return problem(409, "prompt_waits", "The prompt has not begun", details, {"Retry-After": "1"})
    if found is Unclear.SEVERAL:
        return _unclear(_SEVERAL)
    if found is not None:
        _keep_there(jobs, found)
    return found


def _begin(request: web.Request, state: Family, named: NamedIds, usable: set[str]) -> Owner | web.Response | None:
    """Return the backend for a write that begins a state: its session's, but none that keeps another's of that id."""
    gateway, tenant, now = context_of(request), caller(request).tenant, time.monotonic()
    bindings = gateway.engine.bindings
    usable = usable - bindings.others(tenant, _state_ids(named, state))
    alive = {each.name: each for each in gateway.fleet.alive(usable)}
    if not usable:
        return _unclear(_TAKEN)
    place = bindings.session(tenant, named.client_id, state.name, now)
    if place is None or place not in alive or not alive[place].eligible:
        place = min(alive, key=lambda name: _cost(request, alive[name]), default=None)
    if place is None:
        return None
    bindings.keep_session(tenant, named.client_id, state.name, place, now)
    return Owner(place)


def _cost(request: web.Request, backend: Backend) -> tuple[bool, int, int]:
    engine = context_of(request).engine
    return not backend.eligible, engine.bindings.sessions_on(backend.name), sum(engine.ledger.load(backend.name))


def _ended(request: web.Request, named: NamedIds, usable: set[str]) -> Owner | None:
    """Return the backend that ran an ended prompt which a write names."""
    for id_ in named.ids:
        record = context_of(request).engine.history.find(caller(request).tenant, id_)
        if record is not None and record.backend in usable:
            return Owner(record.backend, id_)
    return None


def _jobs(request: web.Request, named: NamedIds) -> list[Job]:
    """Return the caller's open jobs that a write may be for: those that it names, and those on backends."""
    engine, tenant = context_of(request).engine, caller(request).tenant
    placed = [
        job
        for name in context_of(request).fleet.backends
        for job in engine.ledger.jobs_on(name)
        if job.tenant == tenant
    ]
    found = [engine.ledger.find(tenant, id_) for id_ in named.ids]
    return list(dict.fromkeys(job for job in (*found, *placed) if job is not None))


def _open(job: Job) -> OpenJob:
    is_running = job.state is State.RUNNING
    return OpenJob(job.prompt_id, job.backend, is_running, job.live.node, job.live.ids)


def _naming(jobs: Iterable[Job], ids: Iterable[str]) -> set[str]:
    """Return the backends of jobs whose prompts have one of the ids as a text."""
    texts = [f'"{id_}"'.encode() for id_ in ids if is_state_id(id_)]
    found, left = set(), MAX_SEARCHED
    for job in sorted(jobs, key=lambda job: -job.accepted_at) if texts else ():
        left -= len(job.submission.prompt) * len(texts)
        if left < 0:
            break
        if job.backend is not None and any(text in job.submission.prompt for text in texts):
            found.add(job.backend)
    return found


def _keep_there(jobs: Iterable[Job], owner: Owner) -> None:
    """Let a job that has not begun stay on its backend, because the write is there."""
    for job in jobs:
        if job.prompt_id == owner.prompt_id and job.state in QUEUED_THERE:
            job.moved = True


def _renames(request: web.Request, owner: Owner) -> tuple[str, str] | None:
    """Return a named prompt's id, and the one that its backend knows. A custom node sees that one in its events.

    If the prompt itself holds the client's id, nothing is renamed, because its nodes know that id.
    """
    if owner.prompt_id is None:
        return None
    engine, tenant = context_of(request).engine, caller(request).tenant
    job = engine.ledger.find(tenant, owner.prompt_id)
    if job is not None:
        shown = owner.prompt_id.encode()
        is_known = shown in job.submission.prompt or shown in job.submission.extra_data
        upstream_id = "" if is_known else job.upstream_id
    else:
        record = engine.history.find(tenant, owner.prompt_id)
        upstream_id = record.upstream_id if record is not None else ""
    return (owner.prompt_id, upstream_id) if len(upstream_id) == len(owner.prompt_id) else None


def _reader(request: web.Request, backend: str, state: Family | None, named: NamedIds) -> Callable[[bytes], None]:
    """Return the function that binds the ids of a write that succeeded, and those in its answer."""
    gateway, tenant = context_of(request), caller(request).tenant

    def read(answer: bytes) -> None:
        ids = [*_state_ids(named, state), *named_ids.read_answer(answer)]
        own = [each for each in ids if gateway.engine.ledger.find(tenant, each) is None]
        gateway.engine.bindings.bind(tenant, own, backend, time.monotonic(), pins=state is not None)

    return read


def _unclear(details: str) -> web.Response:
    return problem(409, "write_owner_unclear", "The gateway can't tell which backend this is for", details)


def _lost(id_: str) -> web.Response:
    details = f"the ComfyUI process that had {id_!r} is gone, and with it what it kept; send that again"
    return problem(410, "state_lost", "What this names is lost", details)
