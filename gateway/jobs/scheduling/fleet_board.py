"""Board of the fleet for routing policies, kept as jobs and backends change, so that no decision looks at all backends.

The ledger says which backend a job came to or left. What changes by itself is looked at again in time: a running job's
expected end, and once a second all backends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from heapq import heappop, heappush
from operator import attrgetter

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health
from gateway.jobs.routing.snapshot import BIND_AHEAD_SECONDS, BackendView, Board, open_slots
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import QUEUED_THERE, State

# All backends are looked at again after this time, in seconds.
SWEEP_SECONDS = 1.0
# The expected end of a running job is estimated again after these times at most and at least, in seconds.
MAX_ESTIMATE_SECONDS, MIN_ESTIMATE_SECONDS = 2.0, 0.1
# Seconds of a foreign prompt, if the backend has run nothing yet.
UNKNOWN_SECONDS = 10.0

_queue_key = attrgetter("queue_key")


class FleetBoard:
    """Boards of all backends.

    Args:
        ahead: jobs that a backend gets before it is free, of tenants whose jobs are bound late.
        binds_late: returns True if a job is one that is bound late; None if no tenant has such a policy.

    Attributes:
        at_once: all backends, for jobs that are bound at once: slots up to `max_queue`.
        late: backends that may get jobs, for jobs that are bound late: open slots, expected ends of what they have.
    """

    def __init__(
        self, ledger: Ledger, fleet: Fleet, learning: Learning, ahead: int, binds_late: Callable[[Job], bool] | None
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._learning = learning
        self._ahead = ahead
        self._binds_late = binds_late
        self.at_once = Board()
        self.late = Board()
        self._dirty: set[str] = set()
        self._swept_at = -math.inf
        self._due: list[tuple[float, str]] = []
        self._due_at: dict[str, float] = {}
        # The model of each backend's last job, which will be in memory when the backend has run what it has.
        self._last_models: dict[str, str] = {}
        ledger.steps.on_backend = self.changed

    def changed(self, backend_name: str) -> None:
        """Note that a backend has changed, or its jobs."""
        self._dirty.add(backend_name)

    def all_changed(self) -> None:
        """Note that any backend may have changed."""
        self._swept_at = -math.inf

    def sent(self, backend_name: str, model: str) -> None:
        """Note that a job goes to a backend, with the model that it uses, "" if it is unknown."""
        self._last_models[backend_name] = model

    def refresh(self) -> None:
        """Bring the boards up to date, before a decision."""
        now, dirty = self._learning.now(), self._dirty
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            dirty.update(self._fleet.backends, self.at_once.views)
        while self._due and self._due[0][0] <= now:
            at, name = heappop(self._due)
            if self._due_at.get(name) == at:
                del self._due_at[name]
                dirty.add(name)
        for name in dirty:
            self._show(name, now)
        dirty.clear()

    def next_change(self) -> float | None:
        """Return the time at which a backend may be about to be free, by the learning's clock; None if none runs."""
        return self._due[0][0] if self._due else None

    def _show(self, name: str, now: float) -> None:
        backend = self._fleet.backends.get(name)
        if backend is None:
            self.at_once.remove(name)
            self.late.remove(name)
            self._last_models.pop(name, None)
            return
        queued, running = self._ledger.load(name)
        belief, model = self._learning.held(name), self._last_models.get(name, "")
        held = belief.after([model]) if model and queued + running else belief.held
        view = BackendView(
            name,
            backend.max_queue - queued - running,
            held=held,
            keeps_several=belief.keeps_several,
            pending=backend.foreign_pending + queued,
            running=backend.foreign_running + running,
            slow=backend.health is Health.SLOW or backend.stalled,
            used_at=backend.used_at,
            factor=self._learning.times.speed(name),
            weight=backend.weight,
        )
        if self.at_once.views.get(name) != view:
            self.at_once.put(view)
        if self._binds_late is not None:
            self._show_late(backend, view, now, self._binds_late)

    def _show_late(self, backend: Backend, known: BackendView, now: float, binds_late: Callable[[Job], bool]) -> None:
        name = backend.name
        if not backend.eligible:
            self.late.remove(name)
            return
        usual = self._usual(backend)
        jobs = backend.foreign_running + backend.foreign_pending
        ends_at, queued, held = now + jobs * usual, list[Job](), self._learning.held(name).held
        for job in self._ledger.jobs_on(name):
            if job.state is State.RUNNING:
                ends_at += self._learning.rest(job, now)
                jobs += 1
                if self._learning.was_load(job) is None:
                    held = self._learning.held(name).after([job.submission.workload.signature.model])
            elif job.state in QUEUED_THERE:
                queued.append(job)
        late = [job for job in queued if binds_late(job)]
        # Jobs that were bound at once don't count, because in the backend's queue a late one may have its turn first.
        # But the backend is not idle while it has such jobs, so a late one has to join them.
        ahead = self._ahead if len(late) == len(queued) else max(self._ahead, 1)
        for job in sorted(late, key=_queue_key):
            ends_at += self._learning.run_seconds(job.submission, name, held)
            held = self._learning.held(name).after([job.submission.workload.signature.model])
        jobs += len(late)
        slots = open_slots(now, ends_at, jobs, ahead, is_idle=not (jobs or queued))
        if backend.max_queue - sum(self._ledger.load(name)) <= 0:
            slots = 0
        view = known._replace(slots=slots, ends_at=ends_at, held=held, slow=known.slow or self._is_ejected(name))
        if self.late.views.get(name) != view:
            self.late.put(view)
        if jobs:
            self._look_again(name, now, ends_at - BIND_AHEAD_SECONDS)

    def _look_again(self, name: str, now: float, at: float) -> None:
        at = min(max(at, now + MIN_ESTIMATE_SECONDS), now + MAX_ESTIMATE_SECONDS)
        before = self._due_at.get(name)
        if before is None or at < before:
            self._due_at[name] = at
            heappush(self._due, (at, name))

    def _is_ejected(self, name: str) -> bool:
        now, ejections = time.monotonic(), self._fleet.ejections
        return ejections.may_be_any(now) and name in ejections.ejected(now)

    def _usual(self, backend: Backend) -> float:
        return UNKNOWN_SECONDS if backend.run_seconds is None else backend.run_seconds
