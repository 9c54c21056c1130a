"""Bodies of events, as ``docs/webhook-events.schema.json`` describes them. Pure.

A body has at most `MAX_PAYLOAD` bytes, whatever a node or a client wrote: long texts are cut, and outputs past the room
are counted. A body holds no URL but paths of this gateway, and no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef, can_be_asked_for, ref_of, view_path
from gateway.comfy.history import messages_of
from gateway.jobs.events.shown_eta import eta_fields
from gateway.jobs.state.job import Job
from gateway.jobs.state.job_end import End, no_size
from gateway.webhooks.model import MAX_PAYLOAD, TERMINAL, EventType

VERSION = "2026-11-01"
MAX_OUTPUTS = 100
# Values of an entry's outputs that are looked at.
MAX_LOOKED = 20_000
_MAX_MESSAGE, _MAX_NAME = 2_000, 200
# The types of files that nodes write. A node may give any other text as type, and no request can name it.
_WRITTEN = ("output", "temp")
# Bytes that an output takes beside its parts.
_PER_OUTPUT = 64
_ENDS = {
    "success": EventType.JOB_SUCCEEDED,
    "error": EventType.JOB_FAILED,
    "cancelled": EventType.JOB_CANCELLED,
}
_STATUSES = {
    EventType.JOB_QUEUED: "queued",
    EventType.JOB_STARTED: "running",
    EventType.JOB_SUCCEEDED: "succeeded",
    EventType.JOB_FAILED: "failed",
    EventType.JOB_CANCELLED: "cancelled",
}


def type_of_end(outcome: str) -> EventType:
    """Return the event of a job's outcome."""
    return _ENDS[outcome]


def iso(seconds: float) -> str:
    """Return a time in UTC as text, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_payload(endpoint_id: str, now: float) -> bytes:
    """Return the body of a test event."""
    return _body(EventType.TEST, now, {"version": VERSION, "endpoint_id": endpoint_id})


def backend_payload(type_: EventType, backend: str, now: float) -> bytes:
    """Return the body of an event of a backend."""
    return _body(type_, now, {"version": VERSION, "backend": backend})


def job_payload(type_: EventType, job: Job, now: float, end: End | None = None, public_url: str = "") -> bytes:
    """Return the body of an event of a job.

    Args:
        end: how the job ended; None if it has not.
        public_url: the address of this gateway for its clients; links are paths if it is empty.
    """
    entry = end.entry if end is not None and end.entry is not None else {}
    data = _bare(type_, job, now, public_url)
    if type_ is not EventType.JOB_SUCCEEDED:
        data["error"] = error_of(entry.get("status"))
    metadata = job.submission.metadata
    data["metadata"] = json_codec.loads(metadata) if metadata else None
    room = MAX_PAYLOAD - len(_body(type_, now, data)) - _PER_OUTPUT
    size_of = no_size if end is None else end.size_of
    data["outputs"], data["outputs_left_out"] = outputs_of(entry.get("outputs"), public_url, room, size_of)
    body = _body(type_, now, data)
    body = end.clean(body) if end is not None else body
    if len(body) > MAX_PAYLOAD:
        # If a longer id or word took the place of another one, send what is known without the outputs.
        left_out = data["outputs_left_out"] + len(data["outputs"])
        body = _body(type_, now, {**data, "error": None, "outputs": [], "outputs_left_out": left_out, "metadata": None})
    return body


def bare_payload(type_: EventType, job: Job, now: float, public_url: str = "") -> bytes:
    """Return the body of an event of a job without error, outputs and metadata."""
    return _body(type_, now, _bare(type_, job, now, public_url))


def _bare(type_: EventType, job: Job, now: float, public_url: str) -> dict[str, Any]:
    data: dict[str, Any] = {
        "version": VERSION,
        "prompt_id": job.prompt_id,
        "status": _STATUSES[type_],
        "accepted_at": iso(job.create_time / 1000),
        "started_at": None if job.start_time is None else iso(job.start_time / 1000),
        "ended_at": iso(now) if type_ in TERMINAL else None,
        "error": None,
        "outputs": [],
        "outputs_left_out": 0,
        "job_url": f"{public_url}/api/jobs/{job.prompt_id}",
        "metadata": None,
    }
    if type_ is EventType.JOB_QUEUED:
        shown = job.accepted_eta
        data["eta"] = None if shown is None else eta_fields(shown)["eta"]
    return data


def without_content(body: bytes) -> bytes:
    """Return the body of a job's event without what tells of the job's content, because its owner deleted the job."""
    event = json_codec.loads(body)
    data = event["data"]
    data["outputs_left_out"] += len(data["outputs"])
    data["outputs"], data["metadata"] = [], None
    if data["error"] is not None:
        data["error"]["message"] = ""
    return json_codec.dumps(event)


def _body(type_: EventType, now: float, data: Mapping[str, Any]) -> bytes:
    return json_codec.dumps({"type": str(type_), "timestamp": iso(now), "data": data})


def error_of(status: Any) -> dict[str, str] | None:
    """Return the error in a history entry's status, its texts cut; None if it tells none."""
    for name, message in reversed(messages_of(status)):
        if name in ("execution_error", "execution_interrupted") and message.get("exception_type") is not None:
            return {
                "type": _cut(message["exception_type"], _MAX_NAME),
                "message": _cut(message.get("exception_message", ""), _MAX_MESSAGE),
                "node_id": _cut(message.get("node_id", ""), _MAX_NAME),
                "node_type": _cut(message.get("node_type", ""), _MAX_NAME),
            }
    return None


def _cut(value: Any, maximum: int) -> str:
    """Return a text of at most so many bytes, as JSON writes it."""
    text = str(value)[:maximum].strip()
    while len(json_codec.dumps(text)) > maximum + 2:
        text = text[: len(text) * 3 // 4]
    return text


def outputs_of(
    outputs: Any, public_url: str, room: int, size_of: Callable[[FileRef], int | None] = no_size
) -> tuple[list[dict[str, str | int | None]], int]:
    """Return the files of an entry's outputs, each once, and how many more there are.

    Args:
        room: maximum bytes that they may take.
        size_of: returns the bytes of a file; None if they are unknown.
    """
    files: list[dict[str, str | int | None]] = []
    seen: set[FileRef] = set()
    for node_id, ref in _files(outputs):
        if ref in seen:
            continue
        seen.add(ref)
        if room <= 0 or len(files) >= MAX_OUTPUTS:
            # From here on only count, because building each one takes long.
            continue
        file: dict[str, str | int | None] = {
            "filename": ref.filename,
            "subfolder": ref.subfolder,
            "type": ref.kind,
            "node_id": _cut(node_id, _MAX_NAME),
            "bytes": size_of(ref),
            "url": public_url + view_path(ref),
        }
        room -= len(json_codec.dumps(file)) + 1
        if room > 0:
            files.append(file)
    return files, len(seen) - len(files)


def _files(outputs: Any) -> Iterator[tuple[str, FileRef]]:
    """Yield the files of each node. Input files are left out, because a node that shows one did not write it."""
    for node_id, item in islice(_items(outputs), MAX_LOOKED):
        ref = ref_of(item) if isinstance(item, dict) else None
        if ref is not None and ref.kind in _WRITTEN and can_be_asked_for(ref.subfolder + ref.filename):
            yield node_id, ref


def _items(outputs: Any) -> Iterator[tuple[str, Any]]:
    for node_id, node in outputs.items() if isinstance(outputs, dict) else ():
        for items in node.values() if isinstance(node, dict) else ():
            for item in items if isinstance(items, list) else ():
                yield node_id, item
