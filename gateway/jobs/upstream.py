"""What is said to a backend about a job: the body of its POST /prompt, and that a copy must go."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gateway.comfy import graph, wire
from gateway.comfy.client import BackendError
from gateway.comfy.outputs import FileRef
from gateway.fleet.backend import Backend
from gateway.fleet.files import FileIndex
from gateway.jobs.job import Job
from gateway.jobs.ledger import Ledger
from gateway.telemetry import logs

_log = logs.get("upstream")


def upstream_body(job: Job, backend: str, client_id: str, files: FileIndex) -> bytes:
    """The body that sends a job to a backend: its graph, the gateway's client_id, its own id, its tag as number."""
    submission = job.submission
    extra = submission.extra_data[1:-1]
    if submission.secrets:
        secrets = wire.dumps(dict(submission.secrets))[1:-1]
        extra = extra + b"," + secrets if extra else secrets
    rest = submission.rest[1:-1]
    return b'{"prompt":%b,"client_id":"%b","prompt_id":"%b","number":%b,"extra_data":{%b}%b%b}' % (
        _prompt_for(job, backend, files),
        client_id.encode(),
        job.upstream_id.encode(),
        repr(job.tag).encode(),
        extra,
        b"," if rest else b"",
        rest,
    )


def _prompt_for(job: Job, backend: str, files: FileIndex) -> bytes:
    """The graph with the names that its files have on that backend."""
    renamed: list[tuple[graph.FileInput, str]] = []
    for file in job.submission.files:
        holder = files.find(job.tenant, FileRef(file.kind, file.subfolder, file.filename))
        if holder is not None and holder.backend == backend and holder.filename != file.filename:
            renamed.append((file, holder.filename))
    if not renamed:
        return job.submission.prompt
    prompt: dict[str, Any] = wire.loads(job.submission.prompt)
    for file, filename in renamed:
        prompt[file.node_id]["inputs"][file.input_name] = file.renamed(filename)
    return wire.encoder_for(job.submission.prompt)(prompt)


async def drop_copies(ledger: Ledger, backend: Backend, upstream_ids: Collection[str]) -> None:
    """Take prompts off a backend, pending or running. What can't be done now is done when it is next reconciled."""
    try:
        await backend.client.delete_pending(list(upstream_ids))
        queue = await backend.client.queue()
        for upstream_id in queue.running_ids & frozenset(upstream_ids):
            await backend.client.interrupt(upstream_id)
    except BackendError as error:
        _log.warning("a copy could not be removed yet", backend=backend.name, error=str(error))
        return
    ledger.copies.remove_all(backend.name, upstream_ids)
