"""Calls to a backend about a job: its POST /prompt, whether the backend has it, and the deletion of orphans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.client import BackendError, Refused, UnreadableEntry
from gateway.comfy.responses import MARK, HistoryEntry, Queue
from gateway.fleet.backend import Backend
from gateway.jobs.files.inputs import GraphPath
from gateway.jobs.isolation.secret_folders import Steering, spliced
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import State
from gateway.store.protocol import StoreError
from gateway.telemetry import logs

_log = logs.get("backend_prompts")

AGAIN_AFTER_SECONDS = 2.0
ASK_PAUSE_SECONDS = 0.5


class Offer(Enum):
    """Outcome of an offer. AGAIN: refused, and to be repeated on the same backend."""

    TAKEN = auto()
    AGAIN = auto()
    UNREACHED = auto()
    NOT_SENT = auto()
    SUPERSEDED = auto()


class Where(Enum):
    """Place of a prompt on a backend."""

    RUNNING = auto()
    PENDING = auto()
    ENDED = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Located:
    """Answer of a backend about an assignment's prompt: its place, its id there, and its entry if it ended.

    `unreadable` is the error if the prompt ended, but its entry can't be read.
    """

    where: Where
    upstream_id: str
    entry: HistoryEntry | None = None
    unreadable: UnreadableEntry | None = None

    @property
    def is_queued(self) -> bool:
        """Return True if the prompt runs or is pending."""
        return self.where in (Where.RUNNING, Where.PENDING)


def upstream_body(
    job: Job, assignment: Assignment, client_id: str, changed: Mapping[GraphPath, str], steering: Steering
) -> bytes:
    """Return the body of POST /prompt to a backend: graph, gateway's client_id, upstream id, queue key.

    `changed` are the places in the graph that must name other files on the backend. `steering` changes the folders into
    which savers write.
    """
    submission = job.submission
    parts = [submission.extra_data[1:-1]]
    if submission.secrets:
        parts.append(json_codec.dumps(dict(submission.secrets))[1:-1])
    # Add the mark last, because of a repeated key the last one counts: so a client can't give the mark.
    parts.append(b'"%b":"%b"' % (MARK.encode(), assignment.mark.encode()))
    extra = b",".join(part for part in parts if part)
    rest = submission.rest[1:-1]
    return b'{"prompt":%b,"client_id":"%b","prompt_id":"%b","number":%b,"extra_data":{%b}%b%b}' % (
        _prompt_for(job, changed, steering),
        client_id.encode(),
        assignment.upstream_id.encode(),
        repr(job.queue_key).encode(),
        extra,
        b"," if rest else b"",
        rest,
    )


def _prompt_for(job: Job, changed: Mapping[GraphPath, str], steering: Steering) -> bytes:
    raw = job.submission.prompt
    if not changed and not steering.changed:
        return raw
    if not changed and (done := spliced(raw, steering)) is not None:
        return done
    prompt = steering.applied(job.submission.graph())
    for (node_id, *path, last), value in changed.items():
        inside: Any = prompt[str(node_id)]["inputs"]
        for key in path:
            inside = inside[key]
        inside[last] = value
    return (json_codec.dumps if job.submission.is_plain else json_codec.encoder_for(raw))(prompt)


def extra_of(item: Sequence[Any]) -> Mapping[str, Any]:
    """Return the extra_data of an item of /queue, or of an entry's prompt, which has the same form."""
    extra = item[3] if len(item) > 3 else None
    return extra if isinstance(extra, dict) else {}


def find_in(queue: Queue, upstream_id: str, mark: str) -> Located:
    """Find a prompt in a backend's queue, by its id there, or by its mark if the backend gave it another."""
    marked = Located(Where.ABSENT, upstream_id)
    for where, items in ((Where.RUNNING, queue.running), (Where.PENDING, queue.pending)):
        for item in items:
            if item[1] == upstream_id:
                return Located(where, upstream_id)
            if mark and extra_of(item).get(MARK) == mark:
                marked = Located(where, item[1])
    return marked


async def locate_prompt(
    backend: Backend,
    assignment: Assignment,
    *,
    queue: Queue | None = None,
    entry_first: bool = False,
    timeout: float = -1,
) -> Located:
    """Ask a backend where the prompt of an assignment is.

    The queue is read before the history: ComfyUI moves a prompt from one to the other in one step (execution.py,
    task_done), so a prompt in neither was never there or is lost.

    Args:
        queue: the backend's /queue, if the caller has just read it.
        entry_first: look for the entry first, because the prompt has probably ended.
        timeout: seconds for an entry; -1 for the usual.

    Raises:
        BackendError: the backend did not answer.
    """
    upstream_id, mark = assignment.upstream_id, assignment.mark
    try:
        if entry_first and (entry := await _entry(backend, upstream_id, mark, timeout)) is not None:
            return Located(Where.ENDED, upstream_id, entry)
        found = find_in(await backend.client.queue() if queue is None else queue, upstream_id, mark)
        if found.where is Where.ABSENT and (entry := await _entry(backend, upstream_id, mark, timeout)) is not None:
            return Located(Where.ENDED, upstream_id, entry)
    except UnreadableEntry as error:
        return Located(Where.ENDED, upstream_id, unreadable=error)
    return found


async def _entry(backend: Backend, upstream_id: str, mark: str, timeout: float) -> HistoryEntry | None:
    """Return an entry. If the backend gave the id, the entry must bear the mark, because else it may be another's."""
    entry = await backend.client.history_entry(upstream_id, timeout=timeout)
    if entry is None or mark in ("", upstream_id):
        return entry
    prompt = entry.entry.get("prompt")
    return entry if isinstance(prompt, list) and extra_of(prompt).get(MARK) == mark else None


async def look_for(backend: Backend, job: Job, assignment: Assignment, times: int) -> tuple[Offer, str]:
    """Ask a backend if it has a job's prompt, because the offer got no clear answer.

    The backend may have to say no several times, because the request may still wait in its busy event loop. While the
    backend does not answer, ask again, until the fleet gives it up.

    Args:
        times: number of answers without the prompt after which it counts as not sent.

    Returns:
        TAKEN, NOT_SENT, UNREACHED; SUPERSEDED if the job went elsewhere meanwhile. And the prompt's id on the backend.
    """
    upstream_id = assignment.upstream_id
    while job.is_sent_by(assignment):
        try:
            found = await locate_prompt(backend, assignment)
            if found.where is not Where.ABSENT:
                return Offer.TAKEN, found.upstream_id
            times -= 1
            if times == 0:
                return Offer.NOT_SENT, upstream_id
        except Refused:
            return Offer.UNREACHED, upstream_id
        except BackendError as error:
            _log.info(
                "prompt_lookup_failed", **job.log_ids, backend=backend.name, upstream_id=upstream_id, error=str(error)
            )
        await asyncio.sleep(ASK_PAUSE_SECONDS)
    return Offer.SUPERSEDED, upstream_id


async def journal_assignment(ledger: Ledger, job: Job) -> bool:
    """Journal a job's assignment. Return True if the job still has it, else another call sends the job."""
    before = State.SENDING, job.assignment
    try:
        await ledger.placed(job)
    except StoreError as error:
        # Let the job wait, because after a restart the gateway must know which backend to ask about it.
        _log.error("journal_write_failed", **job.log_ids, error=str(error))
        if before == (job.state, job.assignment):
            ledger.hold(job)
        return False
    return before == (job.state, job.assignment)


async def take_back(backend: Backend, job: Job, assignment: Assignment, is_there: Callable[[], bool]) -> bool:
    """Take a job back from a backend on which it has not started, and retry until the outcome is known.

    Args:
        is_there: returns True while the job is still on the backend, and has not started, as far as the gateway knows.

    Returns:
        True if the backend does not have the prompt any more, so that the job may go elsewhere.
    """
    while is_there():
        try:
            await backend.client.delete_pending([assignment.upstream_id])
            # Locate the prompt, because it may have begun, or even ended, before the delete.
            found = await locate_prompt(backend, assignment)
            return found.where is Where.ABSENT and is_there()
        except Refused:
            return False
        except BackendError as error:
            _log.info("prompt_lookup_failed", **job.log_ids, backend=backend.name, error=str(error))
        await asyncio.sleep(ASK_PAUSE_SECONDS)
    return False


async def drop_orphans(ledger: Ledger, backend: Backend, upstream_ids: Collection[str]) -> None:
    """Cancel orphans on a backend, pending or running. If one remains there, its next probe cancels it."""
    upstream_ids = ledger.orphans.among(backend.name, upstream_ids)
    if not upstream_ids:
        return
    ledger.orphans.told(backend.name, upstream_ids)
    try:
        async with backend.ordering:
            await backend.client.delete_pending(upstream_ids)
            queue = await backend.client.queue()
            # Look at the orphans anew, because by now a job may have taken one back.
            for upstream_id in ledger.orphans.among(backend.name, queue.running_ids & frozenset(upstream_ids)):
                await _interrupt(backend, upstream_id)
    except BackendError as error:
        _log.warning("orphan_removal_failed", backend=backend.name, error=str(error))
        return
    # Keep running orphans until they end, because ComfyUI forgets an interrupt that comes before the prompt has begun.
    ledger.orphans.absent(backend.name, frozenset(upstream_ids) - queue.running_ids)


async def interrupt(backend: Backend, job: Job) -> None:
    """Interrupt a job if its backend runs it now.

    An older ComfyUI interrupts any prompt that runs, so check its queue and the ledger first. A small risk remains
    there: the job may end, and another begin, while the request is on its way.
    """
    async with backend.ordering:
        queue = await backend.client.queue()
        if job.upstream_id in queue.running_ids and job.state is State.RUNNING and job.backend == backend.name:
            await _interrupt(backend, job.upstream_id)


async def _interrupt(backend: Backend, upstream_id: str) -> None:
    """Interrupt a running prompt. Repeat that only `AGAIN_AFTER_SECONDS` later.

    A prompt runs on until its node checks for an interrupt. An early second interrupt might hit the next prompt.
    """
    now = time.monotonic()
    told, at = backend.interrupted
    if told != upstream_id or now - at >= AGAIN_AFTER_SECONDS:
        await backend.client.interrupt(upstream_id)
        backend.interrupted = (upstream_id, now)
