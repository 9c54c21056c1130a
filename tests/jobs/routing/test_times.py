"""Learned times."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import pytest

from gateway.jobs.routing import learned_tables
from gateway.jobs.routing import times as times_module
from gateway.jobs.routing.levels import expected_rest
from gateway.jobs.routing.signature import Signature, Workload
from gateway.jobs.routing.times import Estimate, RunKind, Times, kind_of_run
from tests.support.workloads import workload

SDXL, FLUX = workload("sdxl", 20), workload("flux", 20)


def learned(seconds: dict[str, float], runs: int = 30, noise: float = 0.1, seed: int = 1) -> Times:
    """Return times of SDXL runs on some backends."""
    times, random = Times(), Random(seed)
    for _ in range(runs):
        for backend, usual in seconds.items():
            times.learn(SDXL, backend, usual * math.exp(random.gauss(0, noise)), RunKind.WARM)
    return times


def test_runs_are_told_apart() -> None:
    work = workload("sdxl", 20)
    assert kind_of_run(work, 7, []) is RunKind.LOAD
    assert kind_of_run(work, 7, ["3", "4"]) is RunKind.LOAD
    assert kind_of_run(work, 7, ["1", "3", "4"]) is RunKind.WARM
    assert kind_of_run(work, 7, ["1", "sampler"]) is RunKind.CACHED
    # The samplers' results were held, so nothing needed the loader.
    assert kind_of_run(work, 7, ["sampler"]) is RunKind.CACHED
    assert kind_of_run(work, 3, ["1", "3", "4"]) is RunKind.CACHED
    assert kind_of_run(Workload(work.signature, work.key, "", ()), 7, []) is RunKind.UNKNOWN


def test_a_mean_is_learned_with_its_spread() -> None:
    times = learned({"one": 8.0}, runs=100, noise=0.3)
    estimate = times.estimate(SDXL, "one")
    assert estimate.median == pytest.approx(8.0, rel=0.15)
    assert 0.2 < estimate.sigma < 0.5
    assert times.seconds(SDXL, "one") == pytest.approx(estimate.mean, rel=0.05)


def test_speeds_carry_over_to_other_models() -> None:
    times = learned({"usual": 8.0, "fast": 4.0, "slow": 16.0})
    for _ in range(10):
        times.learn(FLUX, "usual", 35.0, RunKind.WARM)
    assert times.seconds(FLUX, "fast") == pytest.approx(17.5, rel=0.2)
    assert times.seconds(FLUX, "slow") == pytest.approx(70.0, rel=0.2)


def test_a_weight_is_believed_until_runs_tell() -> None:
    times = Times()
    times.expect_speed("large", 4.0)
    times.learn(SDXL, "usual", 8.0, RunKind.WARM)
    assert times.seconds(SDXL, "large") == pytest.approx(2.0, rel=0.2)
    for _ in range(5):
        times.learn(SDXL, "large", 8.0, RunKind.WARM)
    times.expect_speed("large", 4.0)
    assert times.seconds(SDXL, "large") == pytest.approx(8.0, rel=0.2)


def test_features_carry_over_to_other_signatures() -> None:
    times = Times()
    for steps in (10, 15, 20, 30):
        for px in (0.5, 1.0, 2.0):
            times.learn(workload("sdxl", steps, px), "one", 1.0 + 0.1 * steps + 0.2 * steps * px, RunKind.WARM)
    assert times.seconds(workload("sdxl", 40, 1.5), "one") == pytest.approx(1 + 4 + 12, rel=0.15)
    # An unknown model is guessed by the others.
    assert 1.0 < times.seconds(workload("new", 20), "one") < 50.0


def test_a_load_is_learned_apart_from_the_work() -> None:
    times, random = learned({"one": 8.0}, noise=0.2), Random(2)
    for _ in range(30):
        times.learn(SDXL, "one", 8.0 * math.exp(random.gauss(0, 0.2)) + 15.0, RunKind.LOAD)
    assert times.load_seconds("sdxl", "one") == pytest.approx(15.0, rel=0.15)
    assert times.seconds(SDXL, "one") == pytest.approx(8.0, rel=0.15)
    # Loads of one model tell about those of another.
    assert times.load_seconds("flux", "two") == pytest.approx(15.0, rel=0.5)


def test_whole_cached_runs_tell_nothing() -> None:
    times = learned({"one": 8.0})
    before = times.record()
    times.learn(SDXL, "one", 0.002, RunKind.CACHED)
    times.learn(SDXL, "one", math.nan, RunKind.WARM)
    times.learn(SDXL, "one", -1.0, RunKind.WARM)
    assert times.record() == before


@pytest.mark.parametrize("change", [5.0, 0.2])
def test_a_change_of_speed_is_learned_in_few_runs(change: float) -> None:
    times = learned({"one": 8.0, "two": 8.0}, runs=60)
    for _ in range(4):
        times.learn(SDXL, "one", 8.0 * change, RunKind.WARM)
    assert times.seconds(SDXL, "one") == pytest.approx(8.0 * change, rel=0.35)
    assert times.seconds(SDXL, "two") == pytest.approx(8.0, rel=0.35)


def test_one_outlier_changes_little() -> None:
    times = learned({"one": 8.0}, runs=60)
    times.learn(SDXL, "one", 400.0, RunKind.WARM)
    assert times.seconds(SDXL, "one") == pytest.approx(8.0, rel=0.2)


def test_two_modes_widen_the_spread() -> None:
    times, random = Times(), Random(3)
    for _ in range(200):
        times.learn(SDXL, "one", random.choice((4.0, 40.0)), RunKind.WARM)
    assert times.estimate(SDXL, "one").sigma > 0.9
    assert 12.0 < times.seconds(SDXL, "one") < 35.0


def test_a_long_first_run_tells_while_it_runs() -> None:
    times = learned({"one": 8.0})
    before = times.seconds(FLUX, "one")
    times.note_elapsed(FLUX, "one", 1.0)
    assert times.seconds(FLUX, "one") == before
    times.note_elapsed(FLUX, "one", 500.0)
    assert times.seconds(FLUX, "one") > 500.0
    times.learn(FLUX, "one", 600.0, RunKind.WARM)
    assert times.seconds(FLUX, "one") == pytest.approx(600.0, rel=0.3)


def test_the_rest_of_a_run() -> None:
    estimate = Estimate(10.0, 0.3)
    assert estimate.rest(0.0) == pytest.approx(10.0 * math.exp(0.045))
    rests = [estimate.rest(float(each)) for each in range(11)]
    assert rests == sorted(rests, reverse=True)
    assert estimate.rest(1_000.0) > 10.0
    for elapsed in (0.0, 1e-9, 1e9):
        for sigma in (0.05, 2.0):
            assert 0 < expected_rest(10.0, sigma, elapsed) < math.inf


def test_the_record() -> None:
    times = learned({"one": 8.0, "two": 4.0})
    times.learn(FLUX, "one", 50.0, RunKind.LOAD)
    restored = Times()
    restored.restore(json.loads(json.dumps(times.record())))
    assert restored.record() == times.record()
    for work in (SDXL, FLUX, workload("sdxl", 30)):
        for backend in ("one", "two", "three"):
            assert restored.seconds(work, backend) == pytest.approx(times.seconds(work, backend))
            assert restored.load_seconds("flux", backend) == pytest.approx(times.load_seconds("flux", backend))


@pytest.mark.parametrize(
    "record",
    [None, [], 7, {"sizes": 3}, {"sizes": [[1, 2]], "fits": [["a", "b", None]], "speeds": [["a", 1e300, 1]]}],
)
def test_a_malformed_record_is_skipped(record: Any) -> None:
    times = Times()
    times.restore(record)
    assert times.record() == Times().record()


def test_the_record_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned between two parts does no harm."""
    monkeypatch.setattr(learned_tables, "PART_ROWS", 1)
    times, restored = learned({"one": 8.0, "two": 4.0}), Times()
    for n, (name, rows) in enumerate(times.parts()):
        assert name in ("fits", "models") or len(rows) == 1
        restored.restore_part(*json.loads(json.dumps([name, rows])))
        times.learn(workload(f"new-{n}", n), f"new-{n}", 3.0, RunKind.LOAD)
        times.learn(SDXL, f"new-{n}", 3.0, RunKind.LOAD)
    for backend in ("one", "two"):
        assert restored.seconds(SDXL, backend) == pytest.approx(times.seconds(SDXL, backend), rel=0.5)


def test_all_is_forgotten() -> None:
    times = learned({"one": 8.0, "two": 80.0})
    times.usual_seconds(FLUX)
    times.forget_all()
    assert times.record() == Times().record()
    assert times.seconds(SDXL, "two") == Times().seconds(SDXL, "two")


def test_a_backend_is_forgotten() -> None:
    times = learned({"one": 8.0, "two": 80.0})
    times.learn(SDXL, "two", 90.0, RunKind.LOAD)
    times.forget_backend("two")
    assert '"two"' not in json.dumps(times.record())


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_SIGNATURES", "MAX_PAIRS", "MAX_DEVIATIONS", "MAX_MODELS", "MAX_BACKENDS"):
        for module in (times_module, learned_tables):
            monkeypatch.setattr(module, name, 5, raising=False)
    times = Times()
    for n in range(60):
        work = workload(f"model-{n}", n)
        times.note_elapsed(work, f"backend-{n}", 3.0)
        times.learn(work, f"backend-{n}", 3.0, RunKind.LOAD)
        assert times.load_seconds(f"model-{n}", f"backend-{n}") > 0
    assert {len(entries) for entries in times.record().values()} == {5}


def test_the_same_key_means_the_same_signature() -> None:
    a = Signature("m", 0, "euler", 20, 1024, 1024, 1, 1, "x", 20.0, 1.0)
    b = Signature("m", 0, "euler", 20, 1024, 1024, 1, 1, "x", 20.0, 1.0)
    assert a.key == b.key


def test_graphs_that_ask_for_less_than_they_do_make_no_backend_slow() -> None:
    """A client can ask for one step in a graph that runs for minutes, with another signature each time."""
    times, backends = Times(), ("gpu-0", "gpu-1")
    honest, other = workload("sdxl", 20), workload("flux", 20)
    for n in range(60):
        times.learn(honest, backends[n % 2], 10.0, RunKind.WARM)
    for n in range(60):
        for k in range(3):
            times.learn(workload("sdxl", 1, sampler=f"made-up-{n}-{k}"), "gpu-0", 300.0, RunKind.WARM)
        times.learn(honest, backends[n % 2], 10.0, RunKind.WARM)
    for work in (honest, other):
        ratio = times.seconds(work, "gpu-0") / times.seconds(work, "gpu-1")
        assert 0.9 < ratio < 1.1
