"""The log line of a job's phase: queued, running, done or failed."""

from __future__ import annotations

from gateway.jobs.job import Job
from gateway.telemetry import logs

_log = logs.get("jobs")


def log_phase(
    job: Job, status: str, seconds: float, *, backend: str | None, outcome: str | None = None, error: str | None = None
) -> None:
    """Say that a job came to a phase, `seconds` after the phase before."""
    _log.info(
        "job",
        prompt_id=job.prompt_id,
        status=status,
        outcome=outcome,
        duration_ms=round(seconds * 1000),
        model=", ".join(sorted(job.submission.models)) or None,
        backend=backend,
        upstream_id=job.upstream_id or None,
        tenant=job.tenant,
        error=error,
    )
