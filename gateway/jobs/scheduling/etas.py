"""Place and expected time (ETA) of open jobs, as their tenants are shown them.

A tenant that shares the fleet with strangers is shown what its own runs told, and the fleet's load in coarse steps
(`fleet_load.py`). All others are shown what all runs told. While nothing is known of a job's model, there is no ETA.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.fleet.fleet import Fleet
from gateway.jobs.routing.eta import (
    Calibration,
    Eta,
    Expectation,
    Shown,
    error,
    expect_running,
    expect_start,
    in_steps,
    load_step,
)
from gateway.jobs.routing.tenant_times import OwnTimes
from gateway.jobs.routing.times import RunKind
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.fleet_load import FleetLoad, foreign_seconds, rest
from gateway.jobs.scheduling.late_binding import LateBinding
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import SHOWN_RUNNING, State
from gateway.telemetry.metrics import Metrics

# The response to a prompt shows what was expected at its acceptance, if that is no older, in seconds.
MAX_AGE = 0.25
# Jobs of a backend that are looked at.
MAX_JOBS = 64
# A backend on which no estimate depends.
_ANY = "?"


class Etas:
    """Expected times of open jobs. Each end shows how wrong they were.

    Args:
        late: the jobs that are bound late; None if no tenant has such a policy.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        learning: Learning,
        board: FleetBoard,
        late: LateBinding | None,
        load: FleetLoad,
        metrics: Metrics,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._learning = learning
        self._board = board
        self._late = late
        self._load = load
        self._metrics = metrics
        ledger.steps.expect, ledger.steps.on_end = self.accepted, self.ended

    # -- questions -----------------------------------------------------------------------------------------------

    def shown(self, job: Job) -> Shown:
        """Return what the tenant of an open job is shown of it now."""
        is_apart = self._load.is_apart(job.tenant)
        own = self._learning.tenants.of(job.tenant) if is_apart else None
        capacity = self._load.capacity(job.able, is_coarse=is_apart)
        load = load_step(capacity.jobs + len(self._ledger.waiting), max(len(capacity), 1))
        if job.backend is not None:
            before = [] if job.state in SHOWN_RUNNING else self._before(job, job.backend)
            place = sum(each.tenant == job.tenant for each in before)
            expected = self._expect_there(job, job.backend, before, own)
        else:
            place, expected = self._expect_waiting(job, own)
        return Shown(place, load, expected, self._eta(expected, own), time.monotonic())

    def answered(self, job: Job) -> Shown:
        """Return what the response to a prompt shows: what was expected when its job was accepted, if that is new."""
        known = job.accepted_eta
        return known if known is not None and time.monotonic() - known.at < MAX_AGE else self.shown(job)

    def _eta(self, expected: Expectation | None, own: OwnTimes | None) -> Eta | None:
        if expected is None:
            return None
        found, real = self._calibration(own).eta(expected), self._learning.real
        return Eta(real(found.seconds), real(found.low), real(found.high))

    def _calibration(self, own: OwnTimes | None) -> Calibration:
        return self._learning.calibration if own is None else own.calibration

    def _before(self, job: Job, backend_name: str) -> list[Job]:
        """Return the jobs that go before a queued one on its backend."""
        jobs = self._ledger.jobs_on(backend_name)[:MAX_JOBS]
        return [each for each in jobs if each.state in SHOWN_RUNNING or each.queue_key < job.queue_key]

    def _expect_there(
        self, job: Job, backend_name: str, before: Sequence[Job], own: OwnTimes | None
    ) -> Expectation | None:
        """Return the expectation for a job that a backend has."""
        work, times = job.submission.workload, self._learning.times if own is None else own.times
        if not times.knows_work(work):
            return None
        run, model = times.estimate(work, backend_name), work.signature.model
        if job.state in SHOWN_RUNNING and job.started_at is not None:
            load = times.load_seconds(model, backend_name) if job.live.run_kind is RunKind.LOAD else 0.0
            elapsed = self._learning.now() - self._learning.at(job.started_at)
            return expect_running(run, load, max(elapsed, 0.0))
        mine = others = 0.0
        for each in before:
            is_own, seconds = each.tenant == job.tenant, self._load.seconds_there(each, backend_name)
            if each.started_at is not None:
                elapsed = self._learning.now() - self._learning.at(each.started_at)
                seconds = rest(seconds, elapsed, is_coarse=own is not None and not is_own)
            mine, others = (mine + seconds, others) if is_own else (mine, others + seconds)
        backend = self._fleet.backends.get(backend_name)
        others += foreign_seconds(backend, is_coarse=own is not None) if backend is not None else 0.0
        load = self._load_seconds(job, backend_name, own)
        return expect_start(run, load, mine + (others if own is None else in_steps(others)))

    def _expect_waiting(self, job: Job, own: OwnTimes | None) -> tuple[int, Expectation | None]:
        """Return how many of its tenant's jobs go before a job that waits in the gateway, and the expectation."""
        found = self._late.own_ahead(job) if self._late is not None and own is None else None
        if found is not None:
            jobs, seconds = found.jobs, found.seconds
        else:
            jobs = self._ledger.waiting.before(job)
            seconds = jobs * self._load.usual_wait(job.tenant)
        place = jobs + self._ledger.placed_count(job.tenant)
        work, times = job.submission.workload, self._learning.times if own is None else own.times
        capacity = self._load.capacity(job.able, is_coarse=own is not None)
        if not times.knows_work(work) or not len(capacity):
            return place, None
        seconds += self._load.others_ahead(job.tenant, job.able, seconds)
        starts = capacity.ends(seconds)
        load, speed = self._load_seconds(job, None, own), capacity.speed_at(starts)
        starts = starts if own is None else in_steps(starts)
        return place, expect_start(times.usual_estimate(work), load, starts, speed)

    def _load_seconds(self, job: Job, backend_name: str | None, own: OwnTimes | None) -> float:
        """Return the seconds that a load of its model is likely to add to a job that has not started."""
        work, times = job.submission.workload, self._learning.times if own is None else own.times
        model, name = work.signature.model, backend_name or _ANY
        if not model or not times.knows_loads():
            return 0.0
        if own is not None:
            return own.load_share * times.load_seconds(model, name)
        if backend_name is None:
            is_held = next(self._board.at_once.holders(model), None) is not None
        else:
            is_held = model in self._learning.held(backend_name).held
        return 0.0 if is_held else times.load_seconds(model, name)

    # -- steps of jobs -------------------------------------------------------------------------------------------

    def accepted(self, job: Job) -> None:
        """Note what is expected of a job that is accepted now."""
        if job.state not in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
            job.accepted_eta = self.shown(job)

    def ended(self, job: Job) -> None:
        """Learn how wrong the ETA at a job's acceptance was."""
        shown = job.accepted_eta
        if job.state is not State.SUCCEEDED or shown is None or shown.expected is None or shown.eta is None:
            return
        seconds = max(time.monotonic() - shown.at, 0.001)
        self._metrics.eta_error.observe(error(shown.eta.seconds, seconds))
        is_below, is_above = seconds < shown.eta.low, seconds > shown.eta.high
        self._metrics.etas.labels("early" if is_below else "late" if is_above else "within").inc()
        own = self._learning.tenants.of(job.tenant) if self._load.is_apart(job.tenant) else None
        if own is None or own.times.knows_work(job.submission.workload):
            self._calibration(own).learn(shown.expected, self._learning.at(seconds))
            self._learning.changes += 1
