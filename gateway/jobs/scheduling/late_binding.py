"""Jobs that are bound late: they wait in the gateway until a backend is about to need one. The policy then plans anew.

A job is among the heads once it may be sent: its pause is over, it is judged, and its graph is not held. Until then it
is unready, and looked at again at each wake.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.routing.policies.least_work import AGEING, LeastWork
from gateway.jobs.routing.shares import Shares
from gateway.jobs.routing.snapshot import BackendView, Snapshot
from gateway.jobs.routing.waiting import Ahead, WaitingHeads, WaitingJob
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import Submission
from gateway.settings import RoutingSettings

# If a slot is left idle on purpose, decide again after this time, in seconds.
LOOK_AGAIN_SECONDS = 2.0
# Sets of backends that are kept, so that jobs with equal sets share one.
MAX_SETS = 1_000
# The job that a new prompt would be; no job has this id.
_NEW = ""


class LateBinding:
    """Waiting jobs that are bound late.

    Args:
        shares: the order of tenants.
        is_late: returns True if a tenant's prompt is bound late.
        able: returns the backends that can run a job by the catalogue; None for all.
        may_go: returns True if one more of a tenant's jobs may go to a backend.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        learning: Learning,
        board: FleetBoard,
        settings: RoutingSettings,
        shares: Shares,
        is_late: Callable[[Job], bool],
        able: Callable[[Job], frozenset[str] | None],
        may_go: Callable[[str], bool],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._learning = learning
        self._board = board
        self._is_late = is_late
        self._able = able
        self._may_go = may_go
        self._priority_seconds = settings.priority_seconds
        self._policy = LeastWork(max_warm_wait=settings.affinity.max_delay_seconds)
        self.heads = WaitingHeads(shares, learning.times.usual_seconds, AGEING, settings.priority_seconds)
        self._jobs: dict[str, Job] = {}
        self._unready: dict[Job, None] = {}
        # Waiting jobs of each tenant that are not bound late.
        self._at_once: Counter[str] = Counter()
        self._stale: dict[Job, None] = {}
        # Jobs among the heads whose backends change with the fleet, not with the catalogue alone.
        self._bounded: dict[Job, None] = {}
        self._version: int | None = None
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        self._timer: asyncio.TimerHandle | None = None
        ledger.steps.on_wait = self._waits
        ledger.steps.on_leave = self._leaves

    def close(self) -> None:
        """Stop looking again."""
        if self._timer is not None:
            self._timer.cancel()

    def __len__(self) -> int:
        return len(self._jobs) + len(self._unready)

    def _waits(self, job: Job) -> None:
        if self._is_late(job):
            self._unready[job] = None
        else:
            self._at_once[job.tenant] += 1

    def _leaves(self, job: Job) -> None:
        if not self._is_late(job):
            self._at_once[job.tenant] -= 1
            if not self._at_once[job.tenant]:
                del self._at_once[job.tenant]
            return
        self._unready.pop(job, None)
        self._forget(job)
        if self._jobs.pop(_id_of(job), None) is not None:
            self.heads.remove(_id_of(job))

    def has_at_once(self, tenant: str) -> bool:
        """Return True if a tenant has waiting jobs that are not bound late."""
        return tenant in self._at_once

    def own_ahead(self, job: Job) -> Ahead | None:
        """Return the jobs of its own tenant that go before a job; None if it is not among the heads."""
        job_id = _id_of(job)
        return self.heads.own_ahead(job_id) if job_id in self._jobs else None

    def _forget(self, job: Job) -> None:
        self._stale.pop(job, None)
        self._bounded.pop(job, None)

    # -- readiness -----------------------------------------------------------------------------------------------

    def to_judge(self, version: int) -> list[Job]:
        """Return the waiting jobs that are not among the heads, and those that may have other backends now."""
        self._board.refresh()
        if version != self._version:
            self._version = version
            self._stale.update(dict.fromkeys(self._jobs.values()))
        return [*self._unready, *(self._stale | self._bounded)]

    def ready(self, job: Job) -> bool:
        """Put a job among the heads, because it may be sent. Return False if it is there already, as it is now."""
        job_id, able = _id_of(job), self._bounds(job)
        self._unready.pop(job, None)
        self._forget(job)
        if job.pinned is not None or job.avoid:
            self._bounded[job] = None
        before = self._jobs.get(job_id)
        if before is not None:
            if self.heads.able(job_id) == able:
                return False
            self.heads.remove(job_id)
        self._jobs[job_id] = job
        since, is_ordered = self._learning.at(job.accepted_at), _is_ordered(job.submission)
        bonus = job.priority * self._priority_seconds
        self.heads.add(
            WaitingJob(job_id, job.tenant, job.submission.workload, job.number, since, able, is_ordered, bonus)
        )
        return True

    def unready(self, job: Job) -> None:
        """Take a job from the heads, because it may not be sent now."""
        self._forget(job)
        if self._jobs.pop(_id_of(job), None) is not None:
            self.heads.remove(_id_of(job))
        self._unready[job] = None

    def _bounds(self, job: Job) -> frozenset[str] | None:
        """Return the backends to which a waiting job may go; None for all.

        Backends that it is to avoid are among them only while no other one may get jobs.
        """
        able = self._able(job)
        if job.pinned is None and not job.lacking and not job.avoid:
            return able
        names = frozenset(self._fleet.backends) if able is None else able
        if job.pinned is not None:
            names &= job.pinned
        names -= job.lacking
        if not (names - job.avoid).isdisjoint(self._board.late.views):
            names -= job.avoid
        if len(self._sets) > MAX_SETS:
            self._sets.clear()
        return self._sets.setdefault(names, names)

    # -- decisions -----------------------------------------------------------------------------------------------

    def choose(self) -> tuple[Job, Backend] | None:
        """Return the next job to send, and its backend; None if none is to be sent now."""
        while self.heads:
            self._board.refresh()
            choice = self._policy.choose(self._snapshot())
            if choice is None:
                return None
            job, backend = self._jobs[self.heads.first(choice.head).job_id], self._fleet.backends.get(choice.backend)
            if backend is not None and backend.eligible:
                return job, backend
            self._board.late.remove(choice.backend)
        return None

    def find_now(
        self,
        tenant: str,
        submission: Submission,
        able: frozenset[str] | None,
        may_run: Callable[[BackendView], bool] | None,
    ) -> str | None:
        """Return the backend to which the plan sends a new prompt now; None if it has to wait.

        Args:
            may_run: returns True if a backend may get it; None if all may.
        """
        late = self._board.late
        if not late.has_open:
            return None
        if may_run is not None:
            able = frozenset(
                name for name, view in late.views.items() if (able is None or name in able) and may_run(view)
            )
            if not able:
                return None
        now = self._learning.now()
        bonus = submission.priority * self._priority_seconds
        number = submission.number if submission.number is not None else -math.inf if submission.front else math.inf
        self.heads.add(
            WaitingJob(
                _NEW, tenant, submission.workload, number, now, able, is_ordered=_is_ordered(submission), bonus=bonus
            )
        )
        try:
            choice = self._policy.choose(self._snapshot())
            if choice is None or self.heads.first(choice.head).job_id != _NEW:
                return None
        finally:
            self.heads.remove(_NEW)
        backend = self._fleet.backends.get(choice.backend)
        return choice.backend if backend is not None and backend.eligible else None

    def goes_before(self, tenant: str, backend_name: str) -> bool:
        """Return True if a waiting job may go to a backend whose tenant has none there, and its turn before a tenant's.

        Args:
            tenant: the tenant that has a job to bind at once.
        """
        return any(
            self._may_go(other) and not self._ledger.has_on(backend_name, other)
            for other in self.heads.tenants_before(tenant, backend_name)
        )

    def _snapshot(self) -> Snapshot:
        late = self._board.late
        now = self._learning.now()
        heads = self.heads.heads(late.warm_models(), late.is_open, self._may_go, now)
        batch = self.heads.all_heads(self._may_go)
        return Snapshot(now, late, heads, self._learning.times, batch, self._learning.arrivals)

    def look_again(self, wake: Callable[[], None]) -> None:
        """Decide again in time: soon if a slot is left idle on purpose, else when a backend is about to be free."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.heads:
            return
        at, now = self._board.next_change(), self._learning.now()
        if self._board.late.has_open or at is None:
            at = now + LOOK_AGAIN_SECONDS
        delay = max(self._learning.real(at - now), 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, wake)


def _id_of(job: Job) -> str:
    return f"{job.tenant}\n{job.prompt_id}"


def _is_ordered(submission: Submission) -> bool:
    return submission.front or submission.number is not None
