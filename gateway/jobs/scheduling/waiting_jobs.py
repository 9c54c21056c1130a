"""Send the jobs that wait in the gateway, each by its tenant's routing policy.

A job that is bound at once goes as soon as a backend has room for it. A job that is bound late goes when the policy
says so (`late_binding.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.admission import Admission
from gateway.jobs.scheduling.candidates import Candidates
from gateway.jobs.scheduling.late_binding import LateBinding
from gateway.jobs.scheduling.quarantine import Quarantine
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.poisonous import PoisonousGraphs
from gateway.jobs.state.transitions import State

# A job may be sent this early, because its timer may fire too soon, and nothing else wakes the job.
EARLY_SECONDS = 0.02
# Maximum time for judging waiting jobs anew in one turn of the event loop, after the catalogue changed. Microseconds.
MAX_LOOK = 20_000
# Cost of putting a job among the heads of those that are bound late. Microseconds.
READY_COST = 100
# Jobs that are sent in one turn of the event loop, because choosing a backend for each takes up to 0.3 ms.
MAX_SENDS = 50


class WaitingJobs:
    """Sender of waiting jobs.

    Args:
        late: the jobs that are bound late; None if no tenant has such a policy.
        fail: ends a job that no backend can run, with a reason and an error type.
        choose: returns the backend for a job that is bound at once; None if it has to wait.
        send: sends a job to a backend.
        later: asks for `send` in a later turn of the event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        admission: Admission,
        poisonous: PoisonousGraphs,
        quarantine: Quarantine,
        candidates: Candidates,
        late: LateBinding | None,
        fail: Callable[[Job, str, str], None],
        choose: Callable[[Job], Backend | None],
        send: Callable[[Job, Backend], None],
        later: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._admission = admission
        self._poisonous = poisonous
        self._quarantine = quarantine
        self._candidates = candidates
        self._late = late
        self._fail = fail
        self._choose = choose
        self._send = send
        self._later = later

    def send(self) -> None:
        """Send the jobs that may go now."""
        if self._ledger.waiting and self._candidates.has_room():
            self._send_at_once()
        if self._late is not None:
            self._send_late(self._late)

    def _send_at_once(self) -> None:
        # If a job of a tenant found no room, skip the tenant's other jobs with the same choice of backends.
        full: set[tuple[str, frozenset[str] | None, frozenset[str] | None, frozenset[str]]] = set()
        now, tenants, looked, sent = time.monotonic(), self._candidates.tenants_to_go(), 0, 0
        for job in self._ledger.waiting.in_turn(tenants):
            if self._late is not None and self._candidates.is_late(job.tenant, job.submission):
                continue
            looked = self._look(job, looked)
            if looked > MAX_LOOK:
                return
            if not self._is_ready(job, now):
                continue
            places = (job.tenant, job.able, job.pinned, job.avoid | job.lacking)
            if places in full:
                continue
            if sent == MAX_SENDS:
                self._later()
                return
            backend = self._choose(job)
            if backend is not None:
                sent += 1
                self._send(job, backend)
                if not self._candidates.may_run_more(job.tenant):
                    tenants.discard(job.tenant)
            elif not self._candidates.has_room():
                return
            elif places == (job.tenant, None, None, frozenset()):
                tenants.discard(job.tenant)
            else:
                full.add(places)

    def _send_late(self, late: LateBinding) -> None:
        """Send the jobs that are bound late, as the policy plans, and look again in time."""
        now, looked, sent = time.monotonic(), 0, 0
        for job in late.to_judge(self._admission.version):
            looked = self._look(job, looked)
            if looked > MAX_LOOK:
                break
            if self._is_ready(job, now):
                looked += READY_COST * late.ready(job)
            elif job.state is State.WAITING:
                late.unready(job)
        while (choice := late.choose()) is not None:
            if sent == MAX_SENDS:
                self._later()
                break
            job, backend = choice
            if not self._quarantine.admits(job):
                late.unready(job)
            elif backend.name not in job.avoid or not late.ready(job):
                # If the job is to avoid this backend since now, the plan is made anew.
                sent += 1
                self._send(job, backend)
        late.look_again(self._later)

    def _look(self, job: Job, looked: int) -> int:
        """Return the cost of this turn's looks, one more included. If that is too much, ask for a later turn."""
        cost = self._admission.look_cost(job) + self._poisonous.look_cost(job)
        if looked and looked + cost > MAX_LOOK:
            # Look at the remaining jobs in a later turn of the event loop, because judging a prompt parses it.
            self._later()
            return MAX_LOOK + 1
        return min(looked + cost, MAX_LOOK)

    def _is_ready(self, job: Job, now: float) -> bool:
        """Return True if a waiting job may be sent now. Fail it if it can't run any more."""
        if job.not_before > now + EARLY_SECONDS or job.is_ending:
            return False
        if (end := self._admission.end_of(job) or self._poisonous.end_of(job)) is not None:
            self._fail(job, *end)
            return False
        if self._poisonous.is_held(job):
            return False
        if job.pinned and any(self._fleet.backends[name].pulse.alive for name in job.pinned):
            # If the backend that holds the job's files is back, any backend may run it: files can be copied now.
            job.pinned = None
        self._admission.refresh_able(job)
        if job.unfit is not None:
            self._fail(job, job.unfit, "PromptRefused")
            return False
        return True


def is_needed(ledger: Ledger, fleet: Fleet, backend: Backend) -> bool:
    """Return True if a job waits that this backend can run, and no other eligible one."""
    if not ledger.waiting:
        return False
    others = {each.name for each in fleet.backends.values() if each.eligible and each is not backend}
    bounds = {(job.able, job.pinned) for job in ledger.jobs() if job.state is State.WAITING}
    return any(
        (able is None or backend.name in able)
        and (pinned is None or backend.name in pinned)
        and not any((able is None or name in able) and (pinned is None or name in pinned) for name in others)
        for able, pinned in bounds
    )
