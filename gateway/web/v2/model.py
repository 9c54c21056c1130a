"""A job and its outputs as objects of the Comfy API v2. Pure."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.artifacts.links import Link
from gateway.comfy.events import END_OF_TIME
from gateway.comfy.file_refs import finished
from gateway.web.v2.labels import NO_NOTE, Note
from gateway.web.v2.outputs import STEP, Output

QUEUED, RUNNING, SUCCEEDED, CANCELING, CANCELED, FAILED = (
    "queued",
    "running",
    "succeeded",
    "canceling",
    "canceled",
    "failed",
)
STATUSES = (QUEUED, RUNNING, SUCCEEDED, CANCELING, CANCELED, FAILED, "expired")
TERMINAL = frozenset({SUCCEEDED, CANCELED, FAILED, "expired"})
# Statuses by the outcome of a job in the history.
BY_OUTCOME = {"success": SUCCEEDED, "error": FAILED, "cancelled": CANCELED}
# A link to content needs the caller's key, and holds as long as its file. This is the time for which it is promised.
URL_SECONDS = 3_600
_MAX_MESSAGE = 4_000


@dataclass(frozen=True, slots=True)
class Links:
    """Links as the client of a request sees them. `base` is scheme, host and prefix; `query` names the owner."""

    base: str
    query: str = ""

    def of_job(self, job_id: str) -> dict[str, str]:
        """Return the links of a job."""
        own = f"{self.base}/api/v2/jobs/{job_id}"
        return {
            "self": f"{own}{self.query}",
            "events": f"{own}/events{self.query}",
            "cancel": f"{own}/cancel{self.query}",
        }

    def content(self, asset_id: str) -> str:
        """Return the link to an asset's bytes."""
        return f"{self.base}/api/v2/assets/{asset_id}/content{self.query}"

    def of_output(self, each: SizedOutput, now: float) -> dict[str, str]:
        """Return the link to an output's bytes, and the time at which it ends: a signed link if the output has one."""
        if each.link is None:
            return {"url": self.content(each.output.id), "url_expires_at": iso((now + URL_SECONDS) * 1000)}
        return {"url": each.link.under(self.base), "url_expires_at": iso(each.link.expires_at * 1000)}


@dataclass(frozen=True, slots=True)
class SizedOutput:
    """An output with its size in bytes, the BLAKE3 of its bytes, empty if it is unknown, and a signed link to it."""

    output: Output
    size: int
    hash: str = ""
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job at one moment. Times are milliseconds since 1970."""

    id: str
    status: str
    created: int
    expires: int
    started: int | None = None
    ended: int | None = None
    position: int | None = None
    progress: Mapping[str, Any] | None = None
    outputs: Sequence[SizedOutput] = ()
    error: Mapping[str, Any] | None = None
    note: Note = field(default=NO_NOTE)

    @property
    def is_over(self) -> bool:
        """Return True if the job has ended."""
        return self.status in TERMINAL


def iso(milliseconds: float) -> str:
    """Return a time with its zone. A time that is none becomes the end of all."""
    seconds = min(max(milliseconds, 0), END_OF_TIME - 1) / 1000
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def making_outputs(view: JobView, links: Links, now: float) -> Generator[None, None, list[dict[str, Any]]]:
    """Make the objects of a job's outputs, in steps, because there may be 10,000. `now` is in seconds since 1970."""
    made: list[dict[str, Any]] = []
    for place, each in enumerate(view.outputs, start=1):
        made.append(output_object(each, view.id, links, now))
        if place % STEP == 0:
            yield
    return made


def job_object(view: JobView, links: Links, now: float, outputs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the object of a job. `now` is in seconds since 1970, `outputs` are those of `making_outputs`."""
    # A backend's clock may go wrong, and no job starts before it was made.
    started = None if view.started is None else max(view.started, view.created)
    ended = None if view.ended is None else max(view.ended, started or view.created)
    return {
        "id": view.id,
        "status": view.status,
        "created_at": iso(view.created),
        "started_at": None if started is None else iso(started),
        "completed_at": None if ended is None else iso(ended),
        "expires_at": iso(view.expires),
        "queue_position": view.position,
        "progress": view.progress,
        "outputs": finished(making_outputs(view, links, now)) if outputs is None else outputs,
        "error": view.error,
        "metrics": {
            "queue_ms": None if started is None else started - view.created,
            "execution_ms": None if started is None or ended is None else ended - started,
        },
        "urls": links.of_job(view.id),
        **view.note.shown(),
    }


def listed_object(shown: dict[str, Any]) -> dict[str, Any]:
    """Return the item of a list: a job's object, with the times of the hosted form beside it."""
    updated = shown["completed_at"] or shown["started_at"] or shown["created_at"]
    return {**shown, "create_time": shown["created_at"], "update_time": updated}


def output_object(each: SizedOutput, job_id: str, links: Links, now: float) -> dict[str, Any]:
    """Return the object of an output."""
    output = each.output
    return {
        "node_id": output.node_id,
        "name": output.name,
        "type": output.kind,
        "content_type": output.content_type,
        "size_bytes": each.size,
        "id": output.id,
        "hash": f"blake3:{each.hash}" if each.hash else None,
        **links.of_output(each, now),
        "job_id": job_id,
    }


def output_asset(
    each: SizedOutput, job_id: str, created: int, expires: int, links: Links, now: float
) -> dict[str, Any]:
    """Return an output as an asset."""
    output = each.output
    folder = f"{output.ref.subfolder}/" if output.ref is not None and output.ref.subfolder else ""
    return {
        "id": output.id,
        "hash": f"blake3:{each.hash}" if each.hash else None,
        "size_bytes": each.size,
        "content_type": output.content_type,
        "file_path": folder + output.name,
        "created_at": iso(created),
        **links.of_output(each, now),
        "expires_at": iso(expires),
        "job_id": job_id,
    }


def error_of(failure: Any) -> dict[str, Any] | None:
    """Return the error of a job, from the data of its last event; None if that tells none.

    A traceback is left out, because it tells paths of a backend's host.
    """
    if not isinstance(failure, dict) or failure.get("exception_type") is None:
        return None
    node_id, node_class = failure.get("node_id"), failure.get("node_type")
    return {
        "code": "node_execution_error" if node_id else "execution_error",
        "message": str(failure.get("exception_message") or failure["exception_type"])[:_MAX_MESSAGE],
        "node_id": str(node_id)[:200] if node_id else None,
        "class_type": str(node_class)[:200] if node_class else None,
        "traceback": None,
    }


UNKNOWN_ERROR: Mapping[str, Any] = {
    "code": "execution_error",
    "message": "the job failed, and its backend told no error",
    "node_id": None,
    "class_type": None,
    "traceback": None,
}


def position_in(number: float, others: Sequence[float]) -> int:
    """Return the place of a queued job among the tenant's queued jobs: 1 is the next.

    Args:
        number: the job's number, which orders the tenant's jobs.
        others: the numbers of the tenant's other queued jobs.
    """
    return 1 + sum(other < number for other in others)
