"""Place and ETA of open jobs, by the parts that the engine puts together: a ledger, learned times, a fleet's state."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.backend import Backend
from gateway.fleet.fleet import Fleet
from gateway.fleet.health import Health, Pulse
from gateway.jobs.events.shown_eta import eta_fields, eta_headers
from gateway.jobs.routing.eta import Eta, Shown
from gateway.jobs.routing.times import RunKind
from gateway.jobs.scheduling.etas import Etas
from gateway.jobs.scheduling.fleet_board import FleetBoard
from gateway.jobs.scheduling.fleet_load import FleetLoad, rest
from gateway.jobs.scheduling.late_binding import LateBinding
from gateway.jobs.scheduling.learning import Learning
from gateway.jobs.state.job import Job
from gateway.jobs.state.submission import read
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from tests.support.ledgers import _LOOP, Paper, new_ledger
from tests.support.workflows import text_to_image

SECONDS = st.floats(0.5, 5_000)
SETTINGS, METRICS = Settings(), Metrics()


class World:
    """A gateway's open jobs and its backends, and what it learned."""

    def __init__(self, backends: int = 1, *, apart: bool = False, late: bool = False) -> None:
        paper: Any = Paper()
        self.ledger, self.learning = new_ledger(), Learning()
        self.fleet = Fleet(SETTINGS, METRICS, "id", paper)
        for n in range(backends):
            client: Any = None
            made = Backend(f"b{n}", f"http://b{n}", 16, False, client, Pulse(30.0, 0.0, Health.UP), connected=True)
            self.fleet.backends[made.name] = made
        self.ledger.seconds_of = self.learning.usual_seconds
        self.board = board = FleetBoard(self.ledger, self.fleet, self.learning, 1, None)
        share, parts = self.ledger.share, (self.ledger, self.fleet, self.learning, board)
        self.late = LateBinding(
            *(*parts, SETTINGS.routing, share, lambda _: late, lambda job: job.able, lambda _: True)
        )
        load = FleetLoad(self.ledger, self.fleet, self.learning, lambda _: apart)
        self.etas = Etas(*parts, self.late, load, METRICS)

    def job(self, tenant: str, *, model: str = "a", on: str | None = None, runs: bool = False) -> Job:
        """A job that waits, or that a backend has."""
        body = json.dumps({"prompt": text_to_image(model=f"{model}.safetensors")}).encode()
        job = self.ledger.admit(tenant, read(body), ["7"])
        if on is None:
            self.ledger.hold(job)
            if self.late.to_judge(0):
                self.late.ready(job)
        else:
            self.ledger.send(job, on)
            self.ledger.taken(job, job.upstream_id, b"{}")
        if runs:
            self.ledger.start(job, 5)
        return job

    def ran(self, tenant: str, *seconds: float, model: str = "a", kind: RunKind = RunKind.WARM) -> None:
        """A tenant's runs on b0, which has the model in memory afterwards."""
        for each in seconds:
            job = self.job(tenant, model=model, on="b0", runs=True)
            job.live.run_kind = kind
            self.learning.held("b0").started(f"{model}.safetensors", kind is RunKind.WARM)
            self.learning.succeeded(job, "b0", each)
            self.ledger.cancel(job)
        self.board.refresh()

    def finish(self, job: Job) -> None:
        """A job's end."""
        self.ledger.collect(job)
        _LOOP.run_until_complete(self.ledger.finish(job, "success", b"{}", b"{}"))


def eta_of(shown: Shown) -> Eta:
    """The ETA, which must be known."""
    assert shown.eta is not None
    return shown.eta


@pytest.mark.parametrize("apart", [False, True])
def test_there_is_no_eta_until_the_model_has_run(apart: bool) -> None:
    world = World(apart=apart)
    job = world.job("anna")
    assert world.etas.shown(job).eta is None
    world.ran("anna", 10.0, 10.0, model="other")
    assert world.etas.shown(job).eta is None
    world.ran("anna", 40.0, 40.0)
    assert eta_of(world.etas.shown(job)).seconds == pytest.approx(40.0, rel=0.1)
    world.fleet.backends["b0"].drained = True
    world.etas._load._capacities.clear()
    assert world.etas.shown(job).eta is None


@settings(max_examples=15)
@given(st.lists(SECONDS, max_size=5), st.lists(SECONDS, max_size=3), st.lists(SECONDS, max_size=3))
def test_other_tenants_runs_change_nothing(annas: list[float], bens: list[float], more: list[float]) -> None:
    shown, etas = [], []
    for others in ([], annas):
        world = World(apart=True)
        world.ran("anna", *others)
        world.ran("ben", *bens)
        world.ran("ben", 50.0, kind=RunKind.LOAD)
        # Another model pushes theirs out, and her next runs bring it back.
        world.ran("ben", 5.0, model="b")
        world.ran("anna", *others, *others)
        world.ran("ben", *more)
        waiting, queued = world.job("ben"), world.job("ben", on="b0")
        running = world.job("ben", model="b", on="b0", runs=True)
        found = [world.etas.shown(job) for job in (waiting, queued, running)]
        shown.append([(each.place, each.load) for each in found])
        # The running one has run for some milliseconds, or longer on a busy machine.
        etas.append([getattr(each.eta, name, 0.0) for each in found for name in ("seconds", "low", "high")])
    assert shown[0] == shown[1]
    assert etas[0] == pytest.approx(etas[1], rel=0.02, abs=0.5)


@pytest.mark.parametrize("seconds", [55.0, 68.0])
def test_other_tenants_load_is_told_in_coarse_steps(seconds: float) -> None:
    """Her running job counts as half done, so that no step passes as time goes on."""
    shown = []
    for annas in (60.0, seconds):
        world = World(apart=True)
        world.ran("ben", 5.0)
        world.ran("anna", *[annas] * 5, model="hers")
        world.job("anna", model="hers", on="b0", runs=True)
        shown.append([eta_headers(world.etas.shown(job)) for job in (world.job("ben"), world.job("ben", on="b0"))])
    assert shown[0] == shown[1]


def test_a_team_is_told_what_all_runs_told() -> None:
    world = World(2)
    world.ran("anna", *[40.0] * 5)
    assert eta_of(world.etas.shown(world.job("ben"))).seconds == pytest.approx(40.0, rel=0.1)
    world.job("anna", on="b0", runs=True)
    queued = world.job("ben", on="b0")
    assert eta_of(world.etas.shown(queued)).seconds == pytest.approx(80.0, rel=0.1)


def test_a_place_counts_the_tenants_own_jobs() -> None:
    world = World()
    running = world.job("anna", on="b0", runs=True)
    world.job("ben", on="b0")
    queued = world.job("anna", on="b0")
    waiting = [world.job("anna"), world.job("ben"), world.job("anna")]
    shown = [world.etas.shown(job) for job in (running, queued, *waiting)]
    assert [each.place for each in shown] == [0, 1, 2, 1, 3]
    assert {each.load for each in shown} == {5}


def test_if_a_short_job_goes_before_a_long_one_its_place_says_so() -> None:
    for apart, places in ((False, [2, 0, 1]), (True, [0, 1, 2])):
        world = World(apart=apart, late=True)
        world.ran("anna", *[100.0] * 5, model="long")
        world.ran("anna", *[10.0] * 5, model="short")
        jobs = [world.job("anna", model=model) for model in ("long", "short", "short")]
        shown = [world.etas.shown(job) for job in jobs]
        assert [each.place for each in shown] == places
        if not apart:
            seconds = [eta_of(each).seconds for each in shown]
            assert seconds == pytest.approx([120.0, 10.0, 20.0], rel=0.3)


@pytest.mark.parametrize("apart", [False, True])
def test_of_other_tenants_jobs_a_fair_share_goes_before(apart: bool) -> None:
    world = World(apart=apart)
    for tenant in ("anna", "ben"):
        world.ran(tenant, *[10.0] * 5)
    world.job("anna", on="b0", runs=True)
    flood = [world.job("anna") for _ in range(300)]
    first, _, third = (world.job("ben") for _ in range(3))
    assert eta_of(world.etas.shown(first)).seconds < 35
    assert 40 < eta_of(world.etas.shown(third)).seconds < 90
    assert eta_of(world.etas.shown(flood[-1])).seconds > 2_000
    for job in flood:
        world.ledger.cancel(job)
    assert eta_of(world.etas.shown(third)).seconds < 45


def test_each_end_is_compared_with_what_was_shown() -> None:
    world = World()
    world.ran("anna", *[10.0] * 3)
    job = world.job("anna", on="b0")
    world.ledger.steps.queued(job)
    assert job.accepted_eta is not None
    assert world.etas.answered(job) is job.accepted_eta
    world.ledger.start(job, 5)
    before = world.learning.calibration.record()
    ended = METRICS.etas.labels("early")._value.get()
    world.finish(job)
    assert METRICS.etas.labels("early")._value.get() == ended + 1
    assert world.learning.calibration.record() != before


def test_a_tenants_intervals_are_calibrated_by_its_own_jobs() -> None:
    world = World(apart=True)
    for tenant in ("anna", "ben"):
        world.ran(tenant, *[10.0] * 3)
    before = [world.learning.tenants.of(tenant).calibration.record() for tenant in ("anna", "ben")]
    job = world.job("anna", on="b0")
    world.ledger.steps.queued(job)
    world.ledger.start(job, 5)
    world.finish(job)
    after = [world.learning.tenants.of(tenant).calibration.record() for tenant in ("anna", "ben")]
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_stranger_sees_no_run_end() -> None:
    assert [rest(60.0, elapsed, is_coarse=False) for elapsed in (0.0, 50.0, 100.0)] == [60.0, 10.0, 10.0]
    assert {rest(60.0, elapsed, is_coarse=True) for elapsed in (0.0, 50.0, 100.0)} == {30.0}


def test_the_forms() -> None:
    shown = Shown(2, 5, None, Eta(42.4, 9.96, 3_000.6), 0.0)
    assert eta_headers(shown) == {"X-Gateway-Place": "2; load=5", "X-Gateway-ETA": "42; low=10.0; high=3001"}
    eta = {"seconds": 42, "low": 10.0, "high": 3_001}
    assert eta_fields(shown, "gateway_") == {"gateway_place": 2, "gateway_load": 5, "gateway_eta": eta}
    assert eta_fields(Shown(0, 0, None, None, 0.0)) == {"place": 0, "load": 0, "eta": None}
