"""The log line of a job's phase: queued, running, done or failed."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.jobs.state.job import Job
from gateway.telemetry import logs

_log = logs.get("jobs")
_NO_FAILURE: Mapping[str, str] = {}


def log_phase(
    job: Job,
    status: str,
    seconds: float,
    *,
    backend: str | None,
    outcome: str | None = None,
    failure: Mapping[str, str] = _NO_FAILURE,
) -> None:
    """Log that a job came to a phase, `seconds` after the phase before.

    Args:
        failure: `error`, `node_id` and `node_type` of a failed job. If given, the line is a warning.
    """
    (_log.warning if failure else _log.info)(
        "job",
        **job.log_ids,
        status=status,
        outcome=outcome,
        duration_ms=round(seconds * 1000),
        model=", ".join(sorted(job.submission.models)) or None,
        backend=backend,
        upstream_id=job.upstream_id or None,
        tenant=job.tenant,
        **(failure if failure else {"error": None}),
    )
