"""Repeat offers of jobs whose files the gateway put on a backend, and somebody deleted there.

A placement is trusted for some seconds (files/placements.py), so a prompt may be offered to a backend whose folder was
emptied a moment ago. The backend then refuses it, leaves out an output, or fails over it. If a file proves to be gone,
the gateway puts the files there again and offers the job again. Its client notices nothing.
"""

from __future__ import annotations

from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.errors import nodes_with_bad_values
from gateway.fleet.backend import Backend
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.scheduling.backend_prompts import Offer
from gateway.jobs.state.job import Job
from gateway.telemetry import logs

_log = logs.get("files")

# A longer refusal is not read, because it is no list of missing files, and takes long to parse.
MAX_READ = 2**20
# The job is offered again to that backend, then to another, then no more, because a backend may not keep its files.
_STEPS = (Offer.AGAIN, Offer.NOT_SENT)


class LostInputs:
    """Checks of refusals and failures, which find files that were deleted on a backend."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    async def after_refusal(self, job: Job, backend: Backend, body: bytes) -> Offer | None:
        """Return AGAIN (same backend) or NOT_SENT (another) if a refused job is to be offered again, else None."""
        if not job.submission.files or len(body) > MAX_READ:
            return None
        try:
            value = json_codec.loads(body)
        except json_codec.MalformedJson:
            return None
        return await self.after_errors(job, backend, value.get("node_errors") if isinstance(value, dict) else None)

    async def after_errors(self, job: Job, backend: Backend, node_errors: Any) -> Offer | None:
        """Return AGAIN, NOT_SENT or None as `after_refusal` does, by the ``node_errors`` of an answer."""
        if not job.submission.files or job.offers_again >= len(_STEPS):
            return None
        nodes = nodes_with_bad_values(node_errors)
        if not nodes or not await self._inputs.are_lost(job, backend, nodes):
            return None
        _log.info("placed_file_missing", backend=backend.name, **job.log_ids)
        step, job.offers_again = _STEPS[job.offers_again], job.offers_again + 1
        if step is Offer.NOT_SENT:
            # If the job waits on another backend, work stealing must not move it back here.
            job.lacking |= {backend.name}
        return step

    async def after_failure(self, job: Job, backend: Backend, node_id: str) -> bool:
        """Return True if a job failed because a file is gone that was on the backend when the job was sent."""
        return bool(job.submission.files) and await self._inputs.are_lost(job, backend, {node_id})
