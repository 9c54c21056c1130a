"""Replies to POST /prompt: accepted, refused, or that nothing can be taken now."""

from __future__ import annotations

from dataclasses import dataclass, replace

from multidict import CIMultiDict

from gateway.comfy import json_codec
from gateway.comfy.client import Answer, BadAnswer
from gateway.comfy.errors import error_body
from gateway.jobs.state.job import Job, number_json
from gateway.store.protocol import HistoryRecord


class Overloaded(Exception):
    """A prompt can't be accepted now; the text says why. `limit` is the name of the setting that is reached, if any."""

    def __init__(self, details: str, limit: str | None = None) -> None:
        super().__init__(details)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a POST /prompt. `backend` has the job then; empty if it waits, or there is none.

    `prompt_id` is the job's, also of one that a backend refused; the gateway's log tells of it.
    """

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    backend: str = ""
    prompt_id: str = ""

    @classmethod
    def accepted(cls, job: Job) -> Reply:
        """Return the answer to a job that was accepted."""
        return cls(200, job.answer(), backend=job.backend or "", prompt_id=job.prompt_id)

    def of(self, job: Job) -> Reply:
        """Return the same answer, as that to a job."""
        return replace(self, prompt_id=job.prompt_id)


@dataclass(frozen=True, slots=True)
class Known:
    """A prompt that was accepted before, and the answer that it had."""

    digest: bytes | None
    reply: Reply


def accepted_before(job: Job | None, ended: HistoryRecord | None, gave_number: bool) -> Known | None:
    """What is known of a prompt that is open, or has ended; None if neither."""
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
    """Return what an answer that could not be read counts as: the backend's failure."""
    return Answer(502, CIMultiDict(), str(error).encode())


def refused_there(answer: Answer, said: bytes) -> Reply:
    """A backend refused a prompt. `said` is its answer's body, fit for the client.

    What is no JSON is not to be taken for a page of the gateway's.
    """
    type_ = answer.headers.get("Content-Type", "application/json")
    is_json = type_.partition(";")[0].strip().lower() == "application/json" and type_.isprintable()
    return Reply(answer.status, said, type_ if is_json else "text/plain; charset=utf-8")


def input_missing(error: Exception) -> Reply:
    """Return the refusal of a prompt that needs a file which is nowhere any more, as the error says."""
    body = error_body("prompt_outputs_failed_validation", "Prompt outputs failed validation", str(error))
    return Reply(400, json_codec.dumps(body))


def broken_here(error: Exception) -> Reply:
    """The gateway's own code failed over a prompt."""
    return Reply(
        500, json_codec.dumps(error_body("gateway_error", "The prompt could not be sent", type(error).__name__))
    )


def failed_there(answer: Answer, said: bytes) -> Reply:
    """A backend failed over a prompt, and no other can be asked. `said` is its answer's body, fit for the client."""
    # If it answered 200, its body may speak of anybody's prompt.
    text = said[:200].decode("utf-8", "replace") if answer.status >= 500 else ""
    body = error_body("backend_error", f"The backend answered {answer.status} to this prompt", text)
    return Reply(500, json_codec.dumps(body))
