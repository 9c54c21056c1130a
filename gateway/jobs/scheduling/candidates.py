"""Selection of a backend for a job that is bound at once, by its tenant's routing policy."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.jobs.admission.replies import Overloaded
from gateway.jobs.files.inputs import Inputs
from gateway.jobs.routing.policies.registry import POLICIES, Policy
from gateway.jobs.routing.snapshot import BackendView, Head, Snapshot
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.late_binding import LateBinding
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.scheduling.stealing_rules import leaves_room
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import Submission
from gateway.settings import DispatchSettings
from gateway.tenants.limits import Limits, starts_in

MAX_REMEMBERED_SESSIONS = 10_000
# Readiness of a session's last backend, and of one that has the prompt's files. A model in memory counts for one, too.
LAST, HOLDER = 2, 1
# A difference of expected ends up to this part is a tie, because the same job differs by as much from run to run.
NOISE = 0.15


class Candidates:
    """Selection of a backend for a job. It remembers each session's last backend.

    Args:
        policy_of: returns the name of a tenant's routing policy.
        is_alone: returns True if no tenant but this one may come.
        late: the jobs that are bound late; None if no policy does so.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        inputs: Inputs,
        limits: Limits,
        learning: Learning,
        board: FleetBoard,
        late: LateBinding | None,
        policy_of: Callable[[str], str],
        is_alone: Callable[[str], bool],
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._inputs = inputs
        self._limits = limits
        self._learning = learning
        self._board = board
        self._late = late
        self._policy_of = policy_of
        self._is_alone = is_alone
        self._policies = {name: make() for name, make in POLICIES.items()}
        # Of each backend, the models of the last job that named some.
        self._last_models: dict[str, frozenset[str]] = {}
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
        *,
        must_bind: bool = False,
    ) -> Backend | None:
        """Return the backend for a prompt; None if it has to wait.

        Args:
            able: backends that can run the prompt; None for all.
            pinned: the only backends that may get the prompt; None for no such bound.
            tried: backends that did not take the prompt.
            avoid: backends that get the prompt only if no other has room.
            must_bind: True if the prompt must not wait for a better backend.
        """
        self._board.refresh()
        policy = self._policies[self._policy_of(tenant)]
        is_late = policy.binds_late and not submission.is_interactive
        may_run = self._filter(tenant, submission, able, pinned, tried, avoid)
        if is_late and self._late is not None:
            if not must_bind:
                # Without such bounds name no backends, because the late board has only such as may get jobs.
                is_bound = pinned is not None or bool(tried or avoid)
                name = self._late.find_now(tenant, submission, able, may_run if is_bound else None)
            else:
                name = self._find_soonest(tenant, submission, able, may_run)
            if name is not None and not self._late.heads:
                name = self._prefer_last(tenant, submission, name, able, may_run)
        else:
            name = self._find_at_once(
                policy if not is_late else self._policies["shortest_queue"], tenant, submission, able, may_run
            )
        return self._fleet.backends[name] if name is not None else None

    def _find_at_once(
        self,
        policy: Policy,
        tenant: str,
        submission: Submission,
        able: frozenset[str] | None,
        may_run: Callable[[BackendView], bool],
    ) -> str | None:
        session_id = submission.session_id
        last = self._last_backend.get((tenant, session_id)) if session_id else None
        holders = self._inputs.holders(tenant, submission.files) if submission.files else frozenset()
        readiness = dict.fromkeys(holders, HOLDER)
        if last is not None:
            readiness[last] = LAST + readiness.get(last, 0)
        if submission.models and not submission.workload.signature.model:
            # No belief is kept of upscalers and the like, so prefer a backend whose last job used the same.
            for name, models in self._last_models.items():
                if submission.models <= models:
                    readiness[name] = readiness.get(name, 0) + 1
        choice = policy.choose(
            Snapshot(
                self._learning.now(),
                self._board.at_once,
                (Head(tenant, submission.workload, able=able),),
                self._learning.times,
                may_run=may_run,
                has_room=lambda view: self._leaves_room(tenant, view),
                readiness=readiness,
            )
        )
        return choice.backend if choice is not None else None

    def _find_soonest(
        self, tenant: str, submission: Submission, able: frozenset[str] | None, may_run: Callable[[BackendView], bool]
    ) -> str | None:
        """Return the backend with room where a prompt ends first that is bound early, with its turn in that queue."""
        ends: dict[str, tuple[bool, float]] = {}
        now, late = self._learning.now(), self._board.late.views
        for name, view in self._board.at_once.views.items():
            can_take = view.slots > 0 and (able is None or name in able) and self._leaves_room(tenant, view)
            if name in late and can_take and may_run(view):
                own = self._learning.run_seconds(submission, name, late[name].held)
                ends[name] = late[name].slow, max(late[name].ends_at - now, 0.0) + own
        return min(ends, key=lambda name: (ends[name], name), default=None)

    def _prefer_last(
        self,
        tenant: str,
        submission: Submission,
        name: str,
        able: frozenset[str] | None,
        may_run: Callable[[BackendView], bool],
    ) -> str:
        """Return the backend of the session's last prompt if a prompt ends there about as soon; else the named one.

        That backend may have results of the last prompt in its cache, and learned times don't tell what they save.
        """
        session_id, model = submission.session_id, submission.workload.signature.model
        last = self._last_backend.get((tenant, session_id)) if session_id else None
        views, now = self._board.late.views, self._learning.now()
        view = views.get(last) if last is not None else None
        if last is None or view is None or view.slots <= 0 or view.slow or (able is not None and last not in able):
            return name
        if not may_run(view) or (model and model not in view.held):
            return name

        def end(at: BackendView) -> float:
            return max(at.ends_at - now, 0.0) + self._learning.run_seconds(submission, at.name, at.held)

        return last if end(view) <= (1 + NOISE) * end(views[name]) else name

    def _filter(
        self,
        tenant: str,
        submission: Submission,
        able: frozenset[str] | None,
        pinned: frozenset[str] | None,
        tried: Collection[str],
        avoid: frozenset[str],
    ) -> Callable[[BackendView], bool]:
        """Return a function that says if a backend may get a prompt."""
        backends = self._fleet.backends
        beside = self._beside(tenant) if submission.is_interactive else None

        def may_run(view: BackendView) -> bool:
            name = view.name
            return (
                backends[name].eligible
                and name not in tried
                and (pinned is None or name in pinned)
                and (beside is None or name in beside)
            )

        now = time.monotonic()
        if not (avoid or self._fleet.ejections.may_be_any(now)):
            return may_run
        names = {
            name
            for name, view in self._board.at_once.views.items()
            if (able is None or name in able) and may_run(view) and self._leaves_room(tenant, view)
        }
        names -= self._fleet.ejections.out(names, now)
        names = names - avoid or names
        return lambda view: view.name in names

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

    def _leaves_room(self, tenant: str, view: BackendView) -> bool:
        if view.slots <= 1 and self._late is not None and self._late.goes_before(tenant, view.name):
            # Leave the last slot to a tenant whose jobs are bound late, because others would fill it at each end.
            return False
        if leaves_room(view.slots, self._fleet.backends[view.name].max_queue):
            return True
        return not self._ledger.has_on(view.name, tenant) or self._is_alone(tenant)

    def find_now(
        self,
        tenant: str,
        submission: Submission,
        able: frozenset[str] | None,
        maximum: DispatchSettings,
        is_checked: Callable[[], bool],
    ) -> Backend | None:
        """Return the backend for a prompt that is to be accepted; None if the prompt has to wait in the gateway.

        Args:
            is_checked: returns True if the gateway can check the prompt as a backend would. If not, a backend gets it
                at once, although a better one may be free soon, because its refusal is the client's answer.

        Raises:
            Overloaded: too many prompts wait already, by `maximum`.
        """
        found = None
        if self.may_run_more(tenant):
            found = self.find(tenant, submission, able)
            if found is None and self._late is not None and self.is_late(tenant, submission) and not is_checked():
                found = self.find(tenant, submission, able, must_bind=True)
        waiting = self._ledger.waiting
        if found is None and len(waiting) >= maximum.max_waiting:
            raise Overloaded(f"{len(waiting)} prompts are waiting already, and no backend has room", "max_waiting")
        if found is None and waiting.bytes + submission.size > maximum.max_waiting_bytes:
            details = f"{waiting.bytes} bytes of prompts are waiting already, and no backend has room"
            raise Overloaded(details, "max_waiting_bytes")
        return found

    def is_late(self, tenant: str, submission: Submission) -> bool:
        """Return True if a tenant's prompt waits in the gateway until a backend is about to need it."""
        return self._policies[self._policy_of(tenant)].binds_late and not submission.is_interactive

    def may_run_more(self, tenant: str) -> bool:
        """Return True if one more of a tenant's jobs may go to a backend, by the tenant's own limit."""
        return not self._limits.bounds_running or self._limits.may_run_more(tenant, self._ledger.placed_count(tenant))

    def tenants_to_go(self) -> set[str]:
        """Return the tenants with jobs to be bound at once that may send one more to a backend, by their own limits."""
        tenants = (tenant for tenant in self._ledger.waiting.tenants if self.may_run_more(tenant))
        # Leave out tenants whose jobs are all bound late, because ten thousand of these may wait.
        return {tenant for tenant in tenants if self._late is None or self._late.has_at_once(tenant)}

    def has_room(self) -> bool:
        """Return True if any backend could take a job."""
        self._board.refresh()
        backends = self._fleet.backends
        return any(view.slots > 0 and backends[view.name].eligible for view in self._board.at_once.in_queue_order())

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
        if job.submission.models:
            self._last_models[backend.name] = job.submission.models
        self._board.sent(backend.name, job.submission.workload.signature.model)
        if (session_id := job.submission.session_id) is not None:
            self._last_backend[job.tenant, session_id] = backend.name
            self._last_backend.move_to_end((job.tenant, session_id))
            while len(self._last_backend) > MAX_REMEMBERED_SESSIONS:
                self._last_backend.popitem(last=False)
