"""Regression of run times."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.routing.regression import TERMS, Regression


def test_exact_times_are_found_again() -> None:
    fit = Regression()
    for ev, px in itertools.product((4, 10, 20, 40), (0.25, 0.5, 1.0, 2.0)):
        fit.learn(ev, px, 0.4 + 0.05 * ev + 0.02 * ev * px + 0.3 * px)
    assert fit.coefficients == pytest.approx((0.4, 0.05, 0.02, 0.3), rel=0.05)
    assert fit.predict(30, 1.5) == pytest.approx(0.4 + 1.5 + 0.9 + 0.45, rel=0.01)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0.01, 50), st.floats(0.001, 1e5)), max_size=12))
def test_no_coefficient_is_below_zero(runs: list[tuple[int, float, float]]) -> None:
    fit = Regression()
    for ev, px, seconds in runs:
        fit.learn(ev, px, seconds)
    assert all(0 <= each < math.inf for each in fit.coefficients)
    assert fit.predict(20, 1.0) >= 0


def test_one_run_is_enough_for_the_same_features() -> None:
    fit = Regression()
    fit.learn(20, 1.0, 7.0)
    assert fit.predict(20, 1.0) == pytest.approx(7.0, rel=0.01)


def test_old_runs_fade() -> None:
    fit, random = Regression(), Random(1)
    for seconds in (10.0, 30.0):
        for _ in range(1_500):
            ev = random.choice((10, 20, 30))
            fit.learn(ev, 1.0, seconds * ev / 20)
    assert fit.predict(20, 1.0) == pytest.approx(30.0, rel=0.1)


def test_the_record() -> None:
    fit = Regression()
    fit.learn(20, 1.0, 7.0)
    fit.learn(30, 2.0, 12.0)
    restored = Regression.restore(fit.record())
    assert restored is not None
    assert restored.coefficients == fit.coefficients
    for malformed in (None, [], [1.0] * (TERMS + 1), [math.nan] * 21, [-1.0] * 21, ["1"] * 21, {"a": 1}):
        assert Regression.restore(malformed) is None
