"""Files that the gateway put on a backend and somebody deleted there: a job that needs them is no worse for it.

A placement is trusted for some seconds (files/placements.py), so a prompt may be offered to a backend whose folder was
emptied a moment ago. The backend then refuses it, leaves out an output, or fails over it. If a look shows that a file
is gone, the job is offered again, and its files are put there first. Its client hears nothing of it.
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

# A longer refusal is no list of missing files, and takes long to read.
MAX_READ = 2**20
# The job is offered again there, then elsewhere, and no more: a backend may not keep what it is sent.
_STEPS = (Offer.AGAIN, Offer.NOT_SENT)


class LostInputs:
    """Checks of refusals and failures: was a file that the gateway put on the backend deleted there?"""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    async def after_refusal(self, job: Job, backend: Backend, body: bytes) -> Offer | None:
        """Return AGAIN or NOT_SENT (elsewhere) if a job that was refused is to be offered so, else None."""
        if not job.submission.files or len(body) > MAX_READ:
            return None
        try:
            value = json_codec.loads(body)
        except json_codec.MalformedJson:
            return None
        return await self.after_errors(job, backend, value.get("node_errors") if isinstance(value, dict) else None)

    async def after_errors(self, job: Job, backend: Backend, node_errors: Any) -> Offer | None:
        """Return the same by the ``node_errors`` of an answer."""
        if not job.submission.files or job.offers_again >= len(_STEPS):
            return None
        nodes = nodes_with_bad_values(node_errors)
        if not nodes or not await self._inputs.are_lost(job, backend, nodes):
            return None
        _log.info("placed_file_missing", backend=backend.name, **job.log_ids)
        step, job.offers_again = _STEPS[job.offers_again], job.offers_again + 1
        return step

    async def after_failure(self, job: Job, backend: Backend, node_id: str) -> bool:
        """Return True if a job failed over a file that was there when it was sent, and is gone."""
        return bool(job.submission.files) and await self._inputs.are_lost(job, backend, {node_id})
