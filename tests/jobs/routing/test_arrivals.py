"""Gaps between arrivals."""

from __future__ import annotations

from gateway.jobs.routing.arrivals import Arrivals


def after(*gaps: float) -> tuple[Arrivals, float]:
    arrivals, now = Arrivals(), 0.0
    arrivals.arrived(now)
    for gap in gaps:
        now += gap
        arrivals.arrived(now)
    return arrivals, now


def test_a_first_batch_expects_no_more() -> None:
    arrivals, now = after(*[0.01] * 100)
    assert not arrivals.expects_more(now + 60.0, 1e6)


def test_bursts_expect_the_next_burst() -> None:
    arrivals, now = after(*([0.01] * 20 + [250.0]) * 4)
    assert arrivals.expects_more(now + 60.0, 400.0)
    # Not if the work is done long before, nor once the gap is longer than all before.
    assert not arrivals.expects_more(now + 30.0, 10.0)
    assert not arrivals.expects_more(now + 600.0, 10_000.0)


def test_old_gaps_fade() -> None:
    arrivals, now = after(*[100_000.0] * 3, *[200.0] * 40)
    assert arrivals.expects_more(now + 100.0, 300.0)


def test_any_gap_has_its_place() -> None:
    arrivals, now = after(17.0, 1e9, 1e-9, -5.0)
    assert arrivals.expects_more(now, 1e12) is True
    assert arrivals.expects_more(now + 1e12, 1.0) is False
    assert not Arrivals().expects_more(5.0, 5.0)
