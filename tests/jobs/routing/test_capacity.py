"""Capacity of backends over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.routing.capacity import Capacity, spread_evenly

BACKENDS = st.lists(
    st.tuples(st.floats(0, 500, allow_nan=False), st.sampled_from([0.25, 0.5, 1.0, 2.0])), min_size=1, max_size=8
)


def test_work_is_spread_by_speed_as_backends_get_ready() -> None:
    assert Capacity([0.0, 0.0], [1.0, 2.0]).ends(30.0) == pytest.approx(10.0)
    assert Capacity([0.0, 100.0], [1.0, 2.0]).ends(30.0) == pytest.approx(30.0)
    assert Capacity([100.0, 0.0], [2.0, 1.0]).ends(130.0) == pytest.approx(110.0)
    assert Capacity([7.0, 9.0], [1.0, 1.0]).ends(0.0) == 7.0


def test_the_speed_of_those_that_are_ready() -> None:
    capacity = Capacity([50.0, 0.0, 80.0], [4.0, 1.0, 1.0])
    assert [capacity.speed_at(each) for each in (0.0, 50.0, 90.0)] == [1.0, 2.5, 2.0]
    assert Capacity([5.0], [3.0]).speed_at(0.0) == 3.0


@given(BACKENDS, st.floats(0, 5_000, allow_nan=False))
def test_by_then_they_have_done_the_work(backends: list[tuple[float, float]], work: float) -> None:
    ready, speeds = [each for each, _ in backends], [speed for _, speed in backends]
    ends = Capacity(ready, speeds).ends(work)
    assert spread_evenly(work, ready, speeds) == pytest.approx(ends)
    assert sum(speed * max(ends - ready, 0.0) for ready, speed in backends) == pytest.approx(work, abs=1e-6)
