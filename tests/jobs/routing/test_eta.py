"""Expected times until jobs are done."""

from __future__ import annotations

import json
import math
from random import Random
from statistics import median
from typing import Any

import pytest

from benchmarks.routing.simulation import Run, Simulation
from benchmarks.routing.traces import Fleet, bursty, poisson, two_modes
from gateway.jobs.routing.capacity import Capacity
from gateway.jobs.routing.eta import (
    Calibration,
    Eta,
    Expectation,
    error,
    expect_running,
    expect_start,
    in_steps,
    load_step,
)
from gateway.jobs.routing.policies.least_work import LeastWork
from gateway.jobs.routing.times import Estimate

RUN = Estimate(100.0, 0.2)


def test_a_running_job_ends_sooner_and_sooner() -> None:
    found = [expect_running(RUN, 15.0, elapsed).seconds for elapsed in (0.0, 10.0, 15.0, 60.0, 100.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(115.0, rel=0.01)
    assert found[2] == pytest.approx(100.0, rel=0.01)
    for elapsed in (0.0, 130.0, 1e3, 1e9):
        expected = expect_running(RUN, 0.0, elapsed)
        assert 0 < expected.seconds < math.inf
        assert expected.waits == 0


def test_a_waiting_job_waits_for_the_work_ahead() -> None:
    soon = expect_start(RUN, 0.0, 0.0)
    assert soon.seconds == pytest.approx(RUN.mean)
    assert soon.waits == 1
    # Two backends do 1000 seconds of work in 500, and the first is 50 seconds late.
    capacity = Capacity([0.0, 50.0], [1.0, 1.0])
    late = expect_start(RUN, 15.0, capacity.ends(1_000.0), capacity.speed_at(525.0))
    assert late.seconds == pytest.approx(525.0 + RUN.mean + 15.0)
    assert late.waits == 2
    assert expect_start(RUN, 0.0, 10.0, 0.5).seconds == pytest.approx(10.0 + 2 * RUN.mean)


def test_steps_are_coarse() -> None:
    assert [in_steps(each) for each in (0.2, 4.0, 44.0, 700.0, 5_000.0)] == [0.0, 5.0, 30.0, 600.0, 5_400.0]
    assert len({in_steps(each / 10) for each in range(100_000)}) < 25
    assert [load_step(jobs, 4) for jobs in (0, 3, 4, 7, 8, 19, 20, 10**6)] == [0, 0, 1, 1, 2, 2, 5, 1_000]


@pytest.mark.parametrize(
    ("name", "trace"),
    [("stream", poisson(31, 700)), ("modes", two_modes(32, 700)), ("bursts", bursty(33, 700))],
)
def test_the_interval_holds_four_of_five(name: str, trace: Any) -> None:
    calibration, expected, hits = Calibration(), dict[int, tuple[Expectation, Eta]](), list[bool]()

    errors = list[float]()

    def observe(simulation: Simulation, run: Run) -> None:
        if run.ended < 0:
            now, work = simulation.now, run.arrival.kind.work
            views = simulation.board.views.values()
            ready = [max(view.ends_at - now, 0.0) for view in views]
            capacity = Capacity(ready, [1.0 / view.factor for view in views])
            starts = capacity.ends(simulation.waiting.own_ahead(str(run.index)).seconds)
            usual = simulation.times.usual_estimate(work)
            found = expect_start(usual, 5.0, starts, capacity.speed_at(starts))
            expected[run.index] = found, calibration.eta(found)
            return
        took = run.ended - run.arrival.at
        found, eta = expected[run.index]
        calibration.learn(found, took)
        assert eta.low <= eta.seconds <= eta.high
        errors.append(error(eta.seconds, took))
        hits.append(eta.low <= took <= eta.high)

    Simulation(trace, Fleet(), LeastWork(), observe=observe).run()
    seen = hits[100:]
    assert median(errors[100:]) < 0.6, name
    assert 0.7 <= sum(seen) / len(seen) <= 0.9, name


def test_calibration_finds_the_quantiles() -> None:
    calibration, random = Calibration(), Random(4)
    expected = Expectation(100.0, 0.1, 0)
    for _ in range(3_000):
        calibration.learn(expected, 150.0 * math.exp(random.gauss(0.0, 0.5)))
    eta = calibration.eta(expected)
    assert eta.seconds == pytest.approx(150.0, rel=0.25)
    assert eta.low == pytest.approx(150.0 * math.exp(-0.64), rel=0.3)
    assert eta.high == pytest.approx(150.0 * math.exp(0.64), rel=0.3)
    restored = Calibration()
    restored.restore(json.loads(json.dumps(calibration.record())))
    assert restored.record() == calibration.record()
    for malformed in (None, [1], [[math.nan] * 4], [[0, 0, 0, -1]], [[1e9, 0, 0, 0]]):
        fresh = Calibration()
        fresh.restore(malformed)
        assert fresh.record() == Calibration().record()


def test_the_error() -> None:
    assert error(100.0, 200.0) == pytest.approx(math.log(2))
    assert error(0.0, 0.0) == 0.0
