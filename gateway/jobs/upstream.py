"""What is said to a backend about a job: the body of its POST /prompt, whether it has it, and that a copy must go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from enum import Enum, auto
from typing import Any

from gateway.comfy import wire
from gateway.comfy.client import Answer, BackendError, Refused
from gateway.fleet.backend import Backend
from gateway.jobs.inputs import Place
from gateway.jobs.job import Job, State
from gateway.jobs.ledger import Ledger
from gateway.telemetry import logs

_log = logs.get("upstream")

AGAIN_AFTER_SECONDS = 2.0
ASK_PAUSE_SECONDS = 0.5


class Offer(Enum):
    """What became of an offer."""

    TAKEN = auto()
    REFUSED = auto()
    NOT_SENT = auto()
    UNKNOWN = auto()


def upstream_body(job: Job, client_id: str, changed: Mapping[Place, str]) -> bytes:
    """The body that sends a job to a backend: its graph, the gateway's client_id, its own id, its tag as number.

    `changed` are the places in the graph that must say something else there.
    """
    submission = job.submission
    extra = submission.extra_data[1:-1]
    if submission.secrets:
        secrets = wire.dumps(dict(submission.secrets))[1:-1]
        extra = extra + b"," + secrets if extra else secrets
    rest = submission.rest[1:-1]
    return b'{"prompt":%b,"client_id":"%b","prompt_id":"%b","number":%b,"extra_data":{%b}%b%b}' % (
        _prompt_for(job, changed),
        client_id.encode(),
        job.upstream_id.encode(),
        repr(job.tag).encode(),
        extra,
        b"," if rest else b"",
        rest,
    )


def _prompt_for(job: Job, changed: Mapping[Place, str]) -> bytes:
    if not changed:
        return job.submission.prompt
    prompt: dict[str, Any] = wire.loads(job.submission.prompt)
    for (node_id, *path, last), value in changed.items():
        inside: Any = prompt[str(node_id)]["inputs"]
        for key in path:
            inside = inside[key]
        inside[last] = value
    return wire.encoder_for(job.submission.prompt)(prompt)


def taken_as(answer: Answer, upstream_id: str) -> tuple[str, Any]:
    """A backend's 200: its own id for the prompt, and the node_errors of those outputs that it leaves out."""
    try:
        value = wire.loads(answer.body)
        return str(value["prompt_id"]), value.get("node_errors") or {}
    except (wire.MalformedJson, KeyError, TypeError):
        return upstream_id, {}


async def look_for(backend: Backend, upstream_id: str, times: int, is_there: Callable[[], bool]) -> Offer:
    """Whether a backend has a prompt to whose offer no clear answer came.

    What the offer left behind may still be on its way through a busy loop, so the backend has to say no several times.
    While it does not answer it is asked again, until the fleet gives it up.

    Args:
        times: how often it must have answered that it does not have the prompt.
        is_there: whether the job still is that backend's.

    Returns:
        TAKEN, NOT_SENT, REFUSED; UNKNOWN if the job went elsewhere meanwhile.
    """
    while is_there():
        try:
            queue = await backend.client.queue()
            if upstream_id in queue.running_ids | queue.pending_ids:
                return Offer.TAKEN
            if await backend.client.history_entry(upstream_id):
                return Offer.TAKEN
            times -= 1
            if times == 0:
                return Offer.NOT_SENT
        except Refused:
            return Offer.REFUSED
        except BackendError as error:
            _log.info("asking", backend=backend.name, prompt_id=upstream_id, error=str(error))
        await asyncio.sleep(ASK_PAUSE_SECONDS)
    return Offer.UNKNOWN


async def drop_copies(ledger: Ledger, backend: Backend, upstream_ids: Collection[str]) -> None:
    """Take copies off a backend, pending or running. What can't be done now is done at its next probe."""
    upstream_ids = ledger.copies.among(backend.name, upstream_ids)
    if not upstream_ids:
        return
    ledger.copies.told(backend.name, upstream_ids)
    try:
        async with backend.ordering:
            await backend.client.delete_pending(upstream_ids)
            queue = await backend.client.queue()
            # One may be wanted there again by now.
            for upstream_id in ledger.copies.among(backend.name, queue.running_ids & frozenset(upstream_ids)):
                await _interrupt(backend, upstream_id)
    except BackendError as error:
        _log.warning("a copy could not be removed yet", backend=backend.name, error=str(error))
        return
    # ComfyUI forgets an interrupt that comes before the prompt has begun, so one that runs is forgotten at its end.
    ledger.copies.absent(backend.name, frozenset(upstream_ids) - queue.running_ids)


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
