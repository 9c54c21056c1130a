"""Selection of a backend for a job: gather the candidates that `policies` decides between."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.admission.replies import Overloaded
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.scheduling.policies import Candidate, leaves_room, shortest_queue
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import Submission
from gateway.settings import DispatchSettings
from gateway.tenants.limits import Limits, starts_in

MAX_REMEMBERED_SESSIONS = 10_000


class Candidates:
    """Selection of a backend for a job. It remembers each session's last backend.

    Args:
        is_alone: returns True if no tenant but this one may come.
    """

    def __init__(
        self, ledger: Ledger, fleet: Fleet, inputs: Inputs, limits: Limits, is_alone: Callable[[str], bool]
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._inputs = inputs
        self._limits = limits
        self._is_alone = is_alone
        self._last_backend: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._uses = 0

    def find(
        self,
        tenant: str,
        submission: Submission,
        able: frozenset[str] | None,
        pinned: frozenset[str] | None = None,
        tried: Collection[str] = (),
        avoid: frozenset[str] = frozenset(),
    ) -> Backend | None:
        """Return the backend for a prompt; None if all backends that may take it are full.

        Args:
            able: backends that can run the prompt; None for all.
            pinned: the only backends that may get the prompt; None for no such bound.
            tried: backends that did not take the prompt.
            avoid: backends that get the prompt only if no other has room.
        """
        session_id = submission.session_id
        last = self._last_backend.get((tenant, session_id)) if session_id else None
        holders = self._inputs.holders(tenant, submission.files) if submission.files else frozenset()
        beside = self._beside(tenant) if submission.is_interactive else None
        possible = [
            candidate
            for candidate in self._candidates(last, submission.models, holders)
            if candidate.name not in tried
            and self._leaves_room(tenant, candidate)
            and (able is None or candidate.name in able)
            and (pinned is None or candidate.name in pinned)
            and (beside is None or candidate.name in beside)
        ]
        names = {candidate.name for candidate in possible}
        names -= self._fleet.ejections.out(names, time.monotonic())
        names = names - avoid or names
        choice = shortest_queue(candidate for candidate in possible if candidate.name in names)
        return self._fleet.backends[choice.name] if choice else None

    def _beside(self, tenant: str) -> set[str] | None:
        """Return the backends of a tenant's interactive jobs, so that one of them runs at a time; None if none is open.

        A request for a waiting node names the node alone, and two prompts of one workflow have the same nodes.
        """
        found = {
            name
            for name in self._fleet.backends
            if any(job.tenant == tenant and job.submission.is_interactive for job in self._ledger.jobs_on(name))
        }
        return found or None

    def _leaves_room(self, tenant: str, candidate: Candidate) -> bool:
        if leaves_room(candidate.free, self._fleet.backends[candidate.name].max_queue):
            return True
        return not self._ledger.has_on(candidate.name, tenant) or self._is_alone(tenant)

    def find_now(
        self, tenant: str, submission: Submission, able: frozenset[str] | None, maximum: DispatchSettings
    ) -> Backend | None:
        """Return the backend for a prompt that is to be accepted; None if the prompt has to wait in the gateway.

        Raises:
            Overloaded: too many prompts wait already, by `maximum`.
        """
        found = self.find(tenant, submission, able) if self.may_run_more(tenant) else None
        waiting = self._ledger.waiting
        if found is None and len(waiting) >= maximum.max_waiting:
            raise Overloaded(f"{len(waiting)} prompts are waiting already, and no backend has room", "max_waiting")
        if found is None and waiting.bytes + submission.size > maximum.max_waiting_bytes:
            details = f"{waiting.bytes} bytes of prompts are waiting already, and no backend has room"
            raise Overloaded(details, "max_waiting_bytes")
        return found

    def may_run_more(self, tenant: str) -> bool:
        """Return True if one more of a tenant's jobs may go to a backend, by the tenant's own limit."""
        return not self._limits.bounds_running or self._limits.may_run_more(tenant, self._ledger.placed_count(tenant))

    def tenants_to_go(self) -> set[str]:
        """Return the tenants with waiting jobs that may send one more job to a backend, by their own limits."""
        return {tenant for tenant in self._ledger.waiting.tenants if self.may_run_more(tenant)}

    def has_room(self) -> bool:
        """Return True if any backend could take a job."""
        return any(candidate.free > 0 for candidate in self._candidates())

    def one_more_waits(self, tenant: str, size: int) -> None:
        """Check a tenant's limits before one more prompt of `size` bytes is accepted.

        Raises:
            LimitReached: too many of the tenant's prompts wait, or its open prompts would take too many bytes.
        """
        limits = self._limits.of(tenant)
        opened = self._ledger.open_bytes(tenant)
        has_room = limits.open_bytes is None or opened + size <= limits.open_bytes
        if limits.jobs_waiting is None and has_room:
            return
        waiting = self._ledger.unstarted_count(tenant)
        running = self._ledger.remaining(tenant) - waiting
        known = [b.run_seconds for b in self._fleet.backends.values() if b.run_seconds is not None]
        usual = sum(known) / len(known) if known else None
        next_start = starts_in(usual, running)
        self._limits.one_more_waits(tenant, waiting, next_start)
        self._limits.more_bytes_open(tenant, opened, size, next_start)

    def used(self, job: Job, backend: Backend) -> None:
        """Note that a job goes to a backend: its models, and its session's last backend."""
        self._uses += 1
        backend.used_at = self._uses
        backend.models = job.submission.models or backend.models
        if (session_id := job.submission.session_id) is not None:
            self._last_backend[job.tenant, session_id] = backend.name
            self._last_backend.move_to_end((job.tenant, session_id))
            while len(self._last_backend) > MAX_REMEMBERED_SESSIONS:
                self._last_backend.popitem(last=False)

    def _candidates(
        self,
        last: str | None = None,
        models: frozenset[str] = frozenset(),
        holders: frozenset[str] = frozenset(),
    ) -> list[Candidate]:
        found = []
        for backend in self._fleet.backends.values():
            if not backend.eligible:
                continue
            queued, running = self._ledger.load(backend.name)
            warmth = (
                2 * (backend.name == last) + (bool(models) and models <= backend.models) + (backend.name in holders)
            )
            found.append(
                Candidate(
                    backend.name,
                    backend.foreign_pending + queued,
                    backend.foreign_running + running,
                    backend.max_queue - queued - running,
                    backend.health is Health.SLOW,
                    warmth,
                    backend.used_at,
                )
            )
        return found
