"""Backends whose devices suit a job: those that meet its requirement, and are large enough for it.

A requirement is the operator's for the tenant (`tenants.….require`) and the prompt's own; all conditions must hold. A
job that ran out of memory, and later ones alike, go to larger devices while one of these is up.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.admission.redaction import requirement_error
from gateway.jobs.routing.out_of_memory import OutOfMemory, larger_than
from gateway.jobs.routing.requirements import GIB, Requirement, is_met, joined, parse_conditions
from gateway.jobs.state.job import Job
from gateway.jobs.state.prompt_bounds import Rejection
from gateway.jobs.state.submission import Submission
from gateway.telemetry import logs
from gateway.tenants.policy import Policies

_log = logs.get("routing")

# Sets of backends that are kept, because ten thousand waiting jobs have a few different sets among them.
MAX_SETS = 1_000
_Key = tuple[Requirement, int, frozenset[str] | None]
LABELS_GONE = "no backend that this caller may use has the labels any more that the job requires"


class DeviceNeeds:
    """Judge of the backends' devices.

    Args:
        out_of_memory: the jobs that ran out of memory.
    """

    def __init__(self, fleet: Fleet, policies: Policies, out_of_memory: OutOfMemory) -> None:
        self._fleet = fleet
        self._policies = policies
        self._out_of_memory = out_of_memory
        self._labels = {entry.name: frozenset(entry.labels) for entry in fleet.configured}
        # The bytes of each backend's largest GPU, once it has told them, and the backends that can take jobs.
        self._vram: dict[str, int] = {}
        self._up: frozenset[str] = frozenset()
        self._floors: dict[tuple[str, ...], Requirement] = {(): ()}
        self._changes = 0
        self._is_asked = any(policy.require for policy in policies.all)
        self._sets: dict[_Key, frozenset[str] | None] = {}
        self._sets_of = -1

    @property
    def version(self) -> int:
        """Return a number that grows when jobs must be judged anew."""
        return self._changes + self._out_of_memory.changes

    def measured(self, backend: Backend) -> bool:
        """Take note of a backend's devices, as its /system_stats tells them. Return True if waiting jobs may go now."""
        version, size = self.version, _largest(backend)
        if self._vram.get(backend.name) != size:
            self._vram[backend.name] = size
            # Without a requirement or a shortage no job depends on it.
            self._changes += self._is_asked or len(self._out_of_memory) > 0
        self.look()
        return self.version != version

    def look(self) -> None:
        """Look which backends are up, because one may have gone or come, and which shortages are over."""
        self._out_of_memory.expire(time.time())
        if not len(self._out_of_memory):
            return
        up = frozenset(name for name, each in self._fleet.backends.items() if each.able and not each.drained)
        if up != self._up:
            self._up = up
            self._changes += 1

    # -- judging -------------------------------------------------------------------------------------------------

    def among(self, tenant: str, submission: Submission, able: frozenset[str] | None) -> frozenset[str] | None:
        """Return those of the able backends (None: all) whose devices suit a prompt."""
        requirement = self._requirement(tenant, submission)
        size = self._out_of_memory.size_of(tenant, submission.workload.key)
        if not requirement and not size:
            return able
        self._is_asked = True
        if self._sets_of != self.version or len(self._sets) > MAX_SETS:
            self._sets, self._sets_of = {}, self.version
        key = requirement, size, able
        if key not in self._sets:
            self._sets[key] = self._among(requirement, size, able)
        return self._sets[key]

    def _among(self, requirement: Requirement, size: int, able: frozenset[str] | None) -> frozenset[str] | None:
        names = self._names(able)
        found = frozenset(name for name in names if self._is_met(requirement, name))
        if size:
            found = self._larger(found, size) or found
        return able if len(found) == len(names) else found

    def check(
        self, tenant: str, submission: Submission, able: frozenset[str] | None, *, is_redacted: bool
    ) -> frozenset[str] | None:
        """Return those of the able backends (None: all) whose devices suit a new prompt.

        While a backend that may suit has not told its memory, the prompt waits for it.

        Args:
            tenant: the prompt's tenant.
            submission: the prompt.
            able: the backends that can and may run it otherwise.
            is_redacted: True if the refusal must tell nothing of the fleet.

        Raises:
            Rejection: no backend meets the requirement.
        """
        found, names = self.among(tenant, submission, able), self._names(able)
        if found is None or found or not names:
            return found
        requirement = self._requirement(tenant, submission)
        unknown = [name for name in names if self._is_met(requirement, name) is None]
        # A backend that is gone may never tell. If none has told yet, it may be the network.
        if any(self._may_tell(name) for name in unknown) or (unknown and not any(name in self._vram for name in names)):
            return found
        own = joined(submission.require)
        raise Rejection(400, requirement_error(own, None if is_redacted else self._described(names)))

    def reason_to_end(self, job: Job, usable: Collection[str]) -> tuple[str, str] | None:
        """Return why an accepted job can't run any more, and the error's type; None if it can.

        Labels change with the configuration alone. A GPU that is too small now may be replaced.
        """
        requirement = self._requirement(job.tenant, job.submission)
        if not requirement:
            return None
        wanted = {condition.label for condition in requirement if condition.label}
        if not wanted or any(wanted <= self._labels.get(name, frozenset()) for name in usable):
            return None
        return LABELS_GONE, "RequirementUnmet"

    # -- out of memory -------------------------------------------------------------------------------------------

    def ran_out(self, job: Job, backend: Backend) -> None:
        """Note that a job ran out of memory on a backend."""
        size, work = self._vram.get(backend.name, 0), job.submission.workload
        about = work.signature.model, backend.name, size
        shortage = self._out_of_memory.note(job.tenant, work.key, *about, time.time())
        # Look at all backends now, because the job goes to a larger one at once.
        self.look()
        if shortage is not None:
            told = {"backend": backend.name, "vram_gib": round(shortage.size / GIB, 2), "signature": work.key}
            _log.info("out_of_memory_noted", **job.log_ids, tenant=job.tenant, **told)

    def has_larger(self, backend: Backend, able: frozenset[str] | None) -> bool:
        """Return True if one of the able backends (None: all) is up, and its device is larger than a backend's."""
        size = self._vram.get(backend.name, 0)
        return size > 0 and bool(self._larger(self._names(able), size))

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _requirement(self, tenant: str, submission: Submission) -> Requirement:
        texts = self._policies.of(tenant).require
        if not texts:
            return submission.require
        floor = self._floors.get(texts)
        if floor is None:
            floor = self._floors[texts] = parse_conditions(texts)
        return (*floor, *submission.require)

    def _names(self, able: frozenset[str] | None) -> Collection[str]:
        return self._fleet.backends.keys() if able is None else able

    def _is_met(self, requirement: Requirement, name: str) -> bool | None:
        return is_met(requirement, self._labels.get(name, frozenset()), self._vram.get(name))

    def _larger(self, names: Iterable[str], size: int) -> frozenset[str]:
        """Return those backends that are up and whose devices are larger."""
        return larger_than(size, ((name, self._vram.get(name, 0)) for name in names if name in self._up))

    def _may_tell(self, name: str) -> bool:
        backend = self._fleet.backends.get(name)
        return backend is not None and (backend.pulse.alive or backend.health is Health.STARTING)

    def _described(self, names: Iterable[str]) -> dict[str, Any]:
        """Return for a caller who may know the fleet: each backend's labels, and the GiB of its largest GPU."""
        return {
            name: {
                "labels": sorted(self._labels.get(name, ())),
                "vram_gib": round(self._vram[name] / GIB, 2) if name in self._vram else None,
            }
            for name in sorted(names)
        }


def _largest(backend: Backend) -> int:
    """Return the bytes of a backend's largest GPU; 0 if it has none."""
    stats = backend.stats
    return 0 if stats is None else max((int(device.get("vram_total", 0)) for _, device in stats.gpus), default=0)
