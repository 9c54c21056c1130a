"""Calls to a backend about a job: its POST /prompt, whether the backend has it, and the deletion of orphans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.client import BackendError, Refused, UnreadableEntry
from gateway.comfy.responses import MARK, HistoryEntry, Queue
from gateway.fleet.backend import Backend
from gateway.jobs.files.inputs import Place
from gateway.jobs.isolation.secret_folders import Steering, spliced
from gateway.jobs.state.job import Assignment, Job, State
from gateway.jobs.state.ledger import Ledger
from gateway.telemetry import logs

_log = logs.get("upstream")

AGAIN_AFTER_SECONDS = 2.0
ASK_PAUSE_SECONDS = 0.5


class Offer(Enum):
    """What became of an offer. AGAIN: refused, and to be made to the same backend once more."""

    TAKEN = auto()
    AGAIN = auto()
    REFUSED = auto()
    NOT_SENT = auto()
    UNKNOWN = auto()


class Where(Enum):
    """Place of a prompt on a backend."""

    RUNNING = auto()
    PENDING = auto()
    ENDED = auto()
    ABSENT = auto()


@dataclass(frozen=True, slots=True)
class Located:
    """Answer of a backend about an assignment's prompt: its place, its id there, and its entry if it ended.

    `unreadable` says why the entry of one that ended can't be read.
    """

    where: Where
    upstream_id: str
    entry: HistoryEntry | None = None
    unreadable: UnreadableEntry | None = None

    @property
    def is_queued(self) -> bool:
        """Return True if it runs or is pending."""
        return self.where in (Where.RUNNING, Where.PENDING)


def upstream_body(
    job: Job, assignment: Assignment, client_id: str, changed: Mapping[Place, str], steering: Steering
) -> bytes:
    """The body that sends a job to a backend: its graph, the gateway's client_id, the assignment's id, its tag.

    `changed` are the places in the graph that must name other files there, `steering` the changes of where its savers
    write.
    """
    submission = job.submission
    parts = [submission.extra_data[1:-1]]
    if submission.secrets:
        parts.append(json_codec.dumps(dict(submission.secrets))[1:-1])
    # Of a key that is there twice the last one counts, so a client can't give the mark itself.
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


def _prompt_for(job: Job, changed: Mapping[Place, str], steering: Steering) -> bytes:
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
    """Return the extra_data of an item of /queue, or of an entry's prompt: both are of the same form."""
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
    task_done), so what is in neither was never there or is lost.

    Args:
        queue: what its /queue has just said.
        entry_first: look for the entry before all else, because the prompt is over, as far as is known.
        timeout: seconds for an entry; -1 for the usual.

    Raises:
        BackendError: it does not say.
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
    """Return an entry; under an id that the backend gave, only if it bears the mark: else it may be another's."""
    entry = await backend.client.history_entry(upstream_id, timeout=timeout)
    if entry is None or mark in ("", upstream_id):
        return entry
    prompt = entry.entry.get("prompt")
    return entry if isinstance(prompt, list) and extra_of(prompt).get(MARK) == mark else None


async def look_for(backend: Backend, job: Job, assignment: Assignment, times: int) -> tuple[Offer, str]:
    """Find out whether a backend has the prompt of a job to whose offer no clear answer came.

    What the offer left behind may still be on its way through a busy loop, so the backend has to say no several times.
    While it does not answer it is asked again, until the fleet gives it up.

    Args:
        times: how often it must have answered that it does not have the prompt.

    Returns:
        TAKEN, NOT_SENT, REFUSED; UNKNOWN if the job went elsewhere meanwhile. And the prompt's id there.
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
            return Offer.REFUSED, upstream_id
        except BackendError as error:
            _log.info(
                "prompt_lookup_failed", **job.log_ids, backend=backend.name, upstream_id=upstream_id, error=str(error)
            )
        await asyncio.sleep(ASK_PAUSE_SECONDS)
    return Offer.UNKNOWN, upstream_id


async def drop_copies(ledger: Ledger, backend: Backend, upstream_ids: Collection[str]) -> None:
    """Take copies off a backend, pending or running. What can't be done now is done at its next probe."""
    upstream_ids = ledger.orphans.among(backend.name, upstream_ids)
    if not upstream_ids:
        return
    ledger.orphans.told(backend.name, upstream_ids)
    try:
        async with backend.ordering:
            await backend.client.delete_pending(upstream_ids)
            queue = await backend.client.queue()
            # One may be wanted there again by now.
            for upstream_id in ledger.orphans.among(backend.name, queue.running_ids & frozenset(upstream_ids)):
                await _interrupt(backend, upstream_id)
    except BackendError as error:
        _log.warning("copy_removal_failed", backend=backend.name, error=str(error))
        return
    # ComfyUI forgets an interrupt that comes before the prompt has begun, so one that runs is forgotten at its end.
    ledger.orphans.absent(backend.name, frozenset(upstream_ids) - queue.running_ids)


async def interrupt(backend: Backend, job: Job) -> None:
    """Interrupt a job if it is what runs there.

    An older ComfyUI stops whatever runs, so it is looked at first, and the ledger again: what is left to chance on
    such a one is that the job ends, and another begins, within the moment that one request takes.
    """
    async with backend.ordering:
        queue = await backend.client.queue()
        if job.upstream_id in queue.running_ids and job.state is State.RUNNING and job.backend == backend.name:
            await _interrupt(backend, job.upstream_id)


async def _interrupt(backend: Backend, upstream_id: str) -> None:
    """Interrupt what runs; a second time only if it has not heeded the first for a while.

    It runs on until its node looks whether it is interrupted, and the second might then hit the next prompt.
    """
    now = time.monotonic()
    told, at = backend.interrupted
    if told != upstream_id or now - at >= AGAIN_AFTER_SECONDS:
        await backend.client.interrupt(upstream_id)
        backend.interrupted = (upstream_id, now)
