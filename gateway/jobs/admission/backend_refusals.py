"""A backend's answer to POST /prompt in names that the job's tenant knows, without what the tenant must not read."""

from __future__ import annotations

from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.client import Answer
from gateway.jobs.admission.admission import Admission
from gateway.jobs.admission.replies import Reply, failed_there, refused_there
from gateway.jobs.files.outputs import Outputs
from gateway.jobs.state.job import Assignment, Job


def refusal_for(job: Job, assignment: Assignment, answer: Answer, outputs: Outputs, checks: Admission) -> Reply:
    """Return the reply to a client whose prompt a backend refused."""
    body = job.without_added(outputs.without_added_in_json(job, answer.body))
    body = assignment.translate(outputs.reveal(job, body), job.prompt_id)
    return refused_there(answer, checks.told(job.tenant, job.submission.censor().encoded(body)))


def failure_for(job: Job, assignment: Assignment, answer: Answer, outputs: Outputs) -> Reply:
    """Return the reply to a client whose prompt a backend failed over, without a refusal."""
    body = assignment.translate(job.without_added(outputs.reveal(job, answer.body)), job.prompt_id)
    return failed_there(answer, body)


def node_errors_for(
    job: Job, assignment: Assignment, known_as: str, node_errors: Any, outputs: Outputs, checks: Admission
) -> bytes:
    """Return the errors of the outputs that a backend left out, as JSON. `known_as` is the prompt's id there."""
    if not node_errors:
        # If there are none, return early, because nearly all prompts have none.
        return b"{}"
    told = outputs.without_added(job, {"node_errors": node_errors}) or {}
    node_errors = outputs.reveal_value(job, told.get("node_errors"))
    told = checks.told_of(job.tenant, job.submission.censor().value(node_errors))
    said = job.without_added(json_codec.dumps(told)).replace(known_as.encode(), job.prompt_id.encode())
    return assignment.translate(said, job.prompt_id)
