"""Replies to POST /prompt: accepted, refused, or overloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from multidict import CIMultiDict

from gateway.comfy import json_codec
from gateway.comfy.client import Answer, BadAnswer
from gateway.comfy.errors import error_body
from gateway.jobs.state.job import Job, number_json
from gateway.store.protocol import HistoryRecord


class Overloaded(Exception):
    """Overload: no prompt can be accepted now. The text says why. `limit` names the setting that is reached, if any."""

    def __init__(self, details: str, limit: str | None = None) -> None:
        super().__init__(details)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Reply:
    """Response to a POST /prompt. `backend` has the job; it is empty if the job waits, or if there is no job.

    `prompt_id` is the job's, even if a backend refused the job, because the gateway's log names it.
    """

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    backend: str = ""
    prompt_id: str = ""

    @classmethod
    def accepted(cls, job: Job) -> Reply:
        """Return the response for an accepted job."""
        return cls(200, job.answer(), backend=job.backend or "", prompt_id=job.prompt_id)

    def of(self, job: Job) -> Reply:
        """Return the same response with a job's prompt_id."""
        return replace(self, prompt_id=job.prompt_id)


@dataclass(frozen=True, slots=True)
class Known:
    """Prompt that was accepted before, with its response."""

    digest: bytes | None
    reply: Reply


def accepted_before(job: Job | None, ended: HistoryRecord | None, gave_number: bool) -> Known | None:
    """Return the digest and the response of an open or ended prompt; None if there is neither."""
    if job is not None:
        return Known(job.submission.digest, Reply.accepted(job))
    return None if ended is None else Known(ended.digest, _accepted(ended, gave_number))


def _accepted(ended: HistoryRecord, gave_number: bool) -> Reply:
    body = b'{"prompt_id": "%b", "number": %b, "node_errors": %b}' % (
        ended.prompt_id.encode(),
        number_json(ended.number, gave_number),
        ended.node_errors or b"{}",
    )
    return Reply(200, body, prompt_id=ended.prompt_id)


def unread(error: BadAnswer) -> Answer:
    """Return the answer that stands for an unreadable one: a failure of the backend."""
    return Answer(502, CIMultiDict(), str(error).encode())


def refused_there(answer: Answer, said: bytes) -> Reply:
    """Return the response after a backend refused a prompt. `said` is its answer's body, fit for the client.

    A body that is no JSON becomes plain text, so that no browser takes it for a page of the gateway's.
    """
    type_ = answer.headers.get("Content-Type", "application/json")
    is_json = type_.partition(";")[0].strip().lower() == "application/json" and type_.isprintable()
    return Reply(answer.status, said, type_ if is_json else "text/plain; charset=utf-8")


def input_missing(error: Exception) -> Reply:
    """Return the refusal of a prompt whose input file is missing everywhere. The error names the file."""
    body = error_body("prompt_outputs_failed_validation", "Prompt outputs failed validation", str(error))
    return Reply(400, json_codec.dumps(body))


def broken_here(error: Exception) -> Reply:
    """Return the response after the gateway's own code failed over a prompt."""
    return Reply(
        500, json_codec.dumps(error_body("gateway_error", "The prompt could not be sent", type(error).__name__))
    )


def failed_there(answer: Answer, said: bytes) -> Reply:
    """Return the response after a backend failed over a prompt. `said` is its answer's body, fit for the client."""
    # If the backend answered 200, drop its body, because that may be about anybody's prompt.
    text = said[:200].decode("utf-8", "replace") if answer.status >= 500 else ""
    body = error_body("backend_error", f"The backend answered {answer.status} to this prompt", text)
    return Reply(500, json_codec.dumps(body))
