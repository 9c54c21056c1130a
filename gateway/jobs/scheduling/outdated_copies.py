"""Prompts that the gateway's copies of /object_info misjudge, because a model or class is new on a backend, or gone.

Before such a prompt is refused, the gateway reads the named classes again (catalogue/refresher.py). If a backend
refuses the prompt, another backend gets it, unless it is sure that the other one lacks the same. If a backend accepts
the prompt without some of its outputs, and has not begun it, a backend that has all it needs gets it.
"""

from __future__ import annotations

from typing import Any

from gateway.catalogue.capabilities import has_choice
from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.refresher import Refresher
from gateway.comfy.errors import Lack, lacks_of
from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.scheduling.backend_prompts import take_back
from gateway.jobs.state.job import Assignment, Job
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.telemetry import logs

_log = logs.get("dispatcher")

# A longer refusal is not read, because parsing it takes long.
MAX_READ = 2**20


class OutdatedCopies:
    """Second look at prompts that are to be refused for a missing class or choice."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, refresher: Refresher, admission: Admission) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._refresher = refresher
        self._admission = admission

    async def have_changed(self, tenant: str, submission: Submission, rejection: Rejection) -> bool:
        """Read again what a rejected prompt names and no backend has. Return True if the prompt may be judged anew."""
        lacks = lacks_of(rejection.body)
        if lacks or rejection.body["error"].get("type") == "no_backend_able":
            lacks += [Lack(name) for name in self._admission.differing_classes(submission)]
        return bool(lacks) and await self._refresher.reread(lacks, self._admission.allowed(tenant))

    async def find_others(self, job: Job, backend: Backend, body: bytes) -> bool | None:
        """Look for other backends that may run a job which a backend refused. Note in `job.lacking` those that can't.

        Return True if another backend's copy has all that the refusal calls missing, and False if no other backend may
        have it. Return None if another one may have it, though its copy does not tell.
        """
        return await self._find_others(job, backend, self._lacks(job, body) if len(body) <= MAX_READ else [])

    async def take_back(self, job: Job, backend: Backend, assignment: Assignment, node_errors: Any) -> bool:
        """Take a job back from a backend that left outputs out for what it lacks, if another backend has all of it.

        A prompt that has begun stays, because its other outputs would run twice. Return True if the job is free.
        """
        if not node_errors:
            return False
        lacks, lacking = self._lacks(job, {"error": {"type": ""}, "node_errors": node_errors}), job.lacking
        if await self._find_others(job, backend, lacks):
            if await take_back(backend, job, assignment, lambda: job.is_sent_by(assignment)):
                return True
            _log.info("prompt_runs_partly", backend=backend.name, **job.log_ids)
        job.lacking = lacking
        return False

    async def _find_others(self, job: Job, backend: Backend, lacks: list[Lack]) -> bool | None:
        if not lacks:
            return False
        if any(self._lists(backend.name, lack) for lack in lacks):
            self._refresher.mark_stale(backend)
        job.lacking |= {backend.name}
        if not self._others(job):
            return False
        await self._refresher.reread(lacks, self._admission.allowed(job.tenant))
        others = self._others(job)
        job.lacking |= {name for name in others if any(self._surely_lacks(name, lack) for lack in lacks)}
        others -= job.lacking
        if any(all(self._lists(name, lack) for lack in lacks) for name in others):
            _log.info("copy_outdated", backend=backend.name, **job.log_ids)
            return True
        return None if others else False

    def _lacks(self, job: Job, body: Any) -> list[Lack]:
        """Return the missing classes and choices of a refusal, if these are its only errors, and none names a file."""
        named, files = {name for _, name in job.submission.nodes}, self._admission.file_inputs
        lacks = lacks_of(body)
        is_ours = all(each.node_class in named and (each.node_class, each.input_name) not in files for each in lacks)
        return lacks if is_ours else []

    def _others(self, job: Job) -> frozenset[str]:
        """Return the backends that may get a job, without those that lack what it needs."""
        able = self._admission.refresh_able(job)
        names = frozenset(self._fleet.backends if able is None else able) - job.lacking
        return names if job.pinned is None else names & job.pinned

    def _lists(self, backend: str, lack: Lack) -> bool:
        """Return True if a backend's copy has a class or choice."""
        description = self._catalogue.info(backend).get(lack.node_class)
        if lack.input_name is None:
            return description is not None
        return has_choice(description, lack.input_name, lack.value)

    def _surely_lacks(self, backend: str, lack: Lack) -> bool:
        return not self._lists(backend, lack) and self._refresher.is_fresh(backend, lack.node_class)
