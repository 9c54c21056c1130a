"""A job as the journal keeps it, and back."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from gateway.comfy import json_codec
from gateway.jobs.state.job import Assignment, Delivery, Job
from gateway.jobs.state.prompt_webhook import encode_webhook
from gateway.jobs.state.submission import decode_from_journal, encode_for_journal
from gateway.jobs.state.transitions import PLACED, State
from gateway.store.protocol import HistoryRecord, JobRecord, JobUpdate, StoreDamaged
from gateway.store.sqlite_errors import RECOVER


def job_record(job: Job, gateway: str) -> JobRecord:
    """Return the journal's row of an accepted job."""
    return JobRecord(
        *job.key,
        gateway=gateway,
        number=job.number,
        tag=job.queue_key,
        state=job.state,
        backend=job.backend,
        upstream_id=job.upstream_id,
        create_time=job.create_time,
        start_time=job.start_time,
        attempts=job.attempts,
        digest=job.submission.digest,
        node_errors=job.node_errors,
        submission=encode_for_journal(job.submission),
        mark=_mark_of(job),
        given_up=_given_up(job),
        webhook=encode_webhook(job.submission.webhook),
    )


def job_update(job: Job) -> JobUpdate:
    """Return the columns of an open job that can change."""
    return JobUpdate(
        *job.key,
        state=job.state,
        backend=job.backend,
        tag=job.queue_key,
        upstream_id=job.upstream_id,
        start_time=job.start_time,
        attempts=job.attempts,
        node_errors=job.node_errors,
        mark=_mark_of(job),
        given_up=_given_up(job),
    )


def _mark_of(job: Job) -> str:
    return job.assignment.mark if job.assignment is not None else ""


def _given_up(job: Job) -> bytes:
    if not job.given_up:
        return b"[]"
    return json_codec.dumps([[each.backend, each.upstream_id, each.mark] for each in job.given_up])


# Maximum size of an ended job's node_errors in bytes, because the history holds them in memory.
MAX_NODE_ERRORS = 64 * 1024


def history_record(job: Job, outcome: str, entry: bytes, summary: bytes, packed: bytes = b"") -> HistoryRecord:
    """Return the journal's row of an ended job. A large entry is given as `packed`."""
    return HistoryRecord(
        *job.key,
        backend=job.backend,
        upstream_id=job.upstream_id,
        number=job.number,
        outcome=outcome,
        digest=job.submission.digest,
        node_errors=job.node_errors if len(job.node_errors) <= MAX_NODE_ERRORS else b"{}",
        summary=summary,
        entry=entry,
        packed=packed,
    )


def is_counted(summary: bytes) -> bool:
    """Return True if the number in an ended job's summary is of the gateway's count: a client's is a float."""
    try:
        return isinstance(json_codec.loads(summary).get("priority"), int)
    except (json_codec.MalformedJson, AttributeError):
        return False


def job_of(record: JobRecord, backends: Collection[str]) -> Job:
    """Return an open job of an earlier run. Reconciliation asks its backend later what happened meanwhile.

    If the job's backend is not configured any more, the job waits to be sent elsewhere.
    """
    state = State(record.state)
    is_placed = state in PLACED and record.backend in backends
    if state is State.COLLECTING:
        state = State.RUNNING
    now = time.monotonic()
    # If the job was being sent, its prompt may be in the socket buffers of a busy backend.
    delivery = Delivery.UNDER_WAY if state is State.SENDING else Delivery.ARRIVED
    assignment = None
    if state in PLACED and record.backend is not None:
        assignment = Assignment(record.backend, record.upstream_id, record.mark, delivery)
    given_up = tuple(
        Assignment(str(backend), str(upstream_id), str(mark), Delivery.ARRIVED)
        for backend, upstream_id, mark in json_codec.loads(record.given_up)
    )
    if assignment is not None and not is_placed:
        given_up, assignment = (*given_up, assignment), None
    job = Job(
        record.tenant,
        record.prompt_id,
        record.number,
        record.tag,
        decode_from_journal(record.submission, record.digest, record.webhook),
        record.create_time,
        now - max(0.0, time.time() - record.create_time / 1000),
        state=state if is_placed else State.WAITING,
        assignment=assignment,
        given_up=given_up,
        start_time=record.start_time,
        started_at=now - max(0.0, time.time() - record.start_time / 1000) if record.start_time else None,
        placed_at=now,
        attempts=record.attempts,
        node_errors=record.node_errors or b"{}",
    )
    job.live.start_told = job.live.cached_told = record.start_time is not None
    # Start the stall clock now, because the time of the job's last event is not known.
    job.live.heard_at = now
    return job


def restored(record: JobRecord, backends: Collection[str]) -> Job:
    """Return an open job of an earlier run, see `job_of`.

    Raises:
        StoreDamaged: the record can't be read.
    """
    try:
        return job_of(record, backends)
    except _UNREADABLE as error:
        raise StoreDamaged(f"the journal's open job {record.prompt_id} is damaged; {RECOVER}") from error


_UNREADABLE = (json_codec.MalformedJson, LookupError, TypeError, ValueError, AttributeError)


def fault_of_job(row: Mapping[str, Any]) -> str:
    """Return the fault of an open job's row in the journal; an empty text if a gateway can restore the job."""
    try:
        job_of(JobRecord(**row), ())
    except _UNREADABLE as error:
        return f"its prompt can't be read ({error})"
    return ""
