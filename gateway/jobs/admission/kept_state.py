"""Prompts that name state which a custom node keeps in its process: they run where that is, or fail with a reason."""

from __future__ import annotations

from collections.abc import Collection

from gateway.comfy.errors import error_body
from gateway.jobs.state.bindings import Bindings
from gateway.jobs.state.job import Job
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission

_HINT = "send again what it names, then the prompt"


def among(able: frozenset[str] | None, submission: Submission) -> frozenset[str] | None:
    """Return those of the able backends (None: all) that keep the state that a prompt names."""
    if not submission.bound:
        return able
    # `check` has refused a prompt that names state of several backends.
    there = frozenset(backend for backend, _ in submission.bound[:1])
    return there if able is None else able & there


def check(bindings: Bindings, tenant: str, submission: Submission) -> None:
    """Refuse a prompt that names state of a process that is gone, or of several.

    Raises:
        Rejection: no backend has all the state that it names.
    """
    for backend, id_ in submission.bound:
        binding = bindings.of(tenant, id_)
        if binding is None or bindings.is_lost(backend, binding.at):
            details = f"the prompt names {id_!r}, and the ComfyUI process that had it is gone; {_HINT}"
            raise Rejection(400, error_body("state_lost", "The state that the prompt names is lost", details))
    if len(submission.bound) > 1:
        names = ", ".join(repr(id_) for _, id_ in submission.bound)
        details = f"different ComfyUI processes keep {names}; send all of them again in one session, then the prompt"
        raise Rejection(400, error_body("state_apart", "No backend has all the state that the prompt names", details))


def reason_to_end(bindings: Bindings, job: Job, usable: Collection[str]) -> tuple[str, str] | None:
    """Return why an accepted job can't run any more, and the error's type; None if it can.

    Args:
        bindings: the record of backends that went away.
        job: the job.
        usable: the backends that its tenant may use.
    """
    for backend, id_ in job.submission.bound:
        if backend not in usable or bindings.is_lost(backend, job.accepted_at):
            reason = f"it names {id_!r}, and the process on {backend} that had it is gone; {_HINT}"
            return reason, "StateLost"
    return None
