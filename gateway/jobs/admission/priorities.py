"""Check of the priority that a prompt asks for against its tenant's highest one. Pure."""

from __future__ import annotations

from gateway.comfy.errors import error_body
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import PRIORITY, Submission


def check_priority(submission: Submission, maximum: int) -> None:
    """Refuse a prompt that asks for a higher priority than its tenant may.

    Raises:
        Rejection: it does.
    """
    if submission.priority > maximum:
        allowed = f"from 0 to {maximum}" if maximum else "0 alone"
        details = f"extra_data.{PRIORITY} is {submission.priority}; this caller may ask for {allowed}"
        extra = {"priority": submission.priority, "max_priority": maximum}
        raise Rejection(400, error_body("priority_not_allowed", "The priority is too high", details, extra))
