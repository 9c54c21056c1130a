"""Results of runs: JSON for each state of a job, and the headers of an output. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from gateway.comfy.errors import error_body
from gateway.jobs.lifecycle.faults import Fault, fault_of_error
from gateway.web.v2.model import CANCELED, FAILED, JobView, Links
from gateway.web.v2.outputs import Output

PROMPT_ID = "X-Gateway-Prompt-Id"
# Seconds after which a client asks for a result again. The next answer waits as well, so they are few.
RETRY_SECONDS = 1
# Other outputs that the headers of an output name.
MAX_LINKS = 20
_MAX_TITLE = 100


def link_of(links: Links, prompt_id: str) -> str:
    """Return the link to the result of a run."""
    return f"{links.base}/gateway/run/{prompt_id}{links.query}"


def result_object(
    view: JobView, links: Links, outputs: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON of a result, or of a job that has not ended.

    Args:
        outputs: the objects of the job's outputs.
        more: fields beside those of the job.
    """
    return {
        "prompt_id": view.id,
        "status": view.status,
        "queue_position": view.position,
        "outputs": outputs,
        "error": None,
        "urls": {**links.of_job(view.id), "self": link_of(links, view.id), "job": links.of_job(view.id)["self"]},
        **more,
    }


def status_and_error(view: JobView, failure: Any) -> tuple[int, dict[str, Any]]:
    """Return the status of an answer about an ended job, and the fields of its error; none for a success.

    Args:
        failure: the data of the job's last error; None if there is none.
    """
    if view.status == CANCELED:
        return 409, error_body("job_cancelled", "The job was cancelled", "send the request again to run it")
    if view.status != FAILED:
        return 200, {}
    error = view.error or {}
    told = {name: error.get(name) for name in ("node_id", "class_type") if error.get(name)}
    fault = fault_of_error(failure) if isinstance(failure, dict) else Fault.BACKEND
    status = 422 if fault is Fault.CALLER else 500
    message = str(error.get("message", "")).strip()
    return status, error_body("execution_error", "The job failed", message, {**told, "fault": str(fault)})


def in_order(outputs: Sequence[Output]) -> list[Output]:
    """Return outputs in the order in which one is chosen: saved files and texts before previews."""
    return sorted(outputs, key=lambda each: each.ref is not None and each.ref.kind != "output")


def headers_of(output: Output, outputs: Sequence[Output], prompt_id: str, links: Links) -> dict[str, str]:
    """Return the headers of an answer that is an output: they name the job, this output and the others."""
    others = [each for each in outputs if each is not output][:MAX_LINKS]
    told = [f'<{link_of(links, prompt_id)}>; rel="describedby"; type="application/json"']
    told += [_link(links, each) for each in others]
    return {PROMPT_ID: prompt_id, "Content-Location": links.content(output.id), "Link": ", ".join(told)}


def _link(links: Links, output: Output) -> str:
    # RFC 8187: a title may have any characters, encoded.
    title = quote(output.name[:_MAX_TITLE], safe="", errors="replace")
    kind = output.content_type.partition(";")[0]
    return f'<{links.content(output.id)}>; rel="related"; type="{kind}"; title*=UTF-8\'\'{title}'
