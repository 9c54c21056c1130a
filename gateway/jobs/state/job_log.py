"""The log line of a job's phase: queued, running, done or failed."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.comfy.history import Outcome
from gateway.jobs.state.job import Job
from gateway.telemetry import logs

_log = logs.get("jobs")
_NO_FAILURE: Mapping[str, str] = {}
CANCELLED = {"error": "cancelled"}


def log_phase(
    job: Job,
    status: str,
    seconds: float,
    *,
    backend: str | None,
    outcome: str | None = None,
    fault: str | None = None,
    failure: Mapping[str, str] = _NO_FAILURE,
) -> None:
    """Log that a job came to a phase, `seconds` after the phase before.

    Args:
        fault: the party at whose fault a job failed: caller, backend or gateway.
        failure: `error`, `node_id` and `node_type` of a failed job; of a cancelled one `error` alone. The line of a job
            that failed is a warning.
    """
    waited = None if job.started_at is None else round((job.started_at - job.accepted_at) * 1000)
    (_log.warning if outcome == Outcome.ERROR else _log.info)(
        "job",
        **job.log_ids,
        status=status,
        duration_ms=round(seconds * 1000),
        model=job.submission.model or None,
        backend=backend,
        tenant=job.tenant,
        attempt=job.attempts + 1,
        wait_ms=waited,
        outcome=outcome,
        fault=fault,
        upstream_id=job.upstream_id or None,
        **(failure if failure else {"error": None}),
    )
