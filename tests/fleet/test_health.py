"""Slow is not dead."""

from __future__ import annotations

from gateway.fleet.health import Health, Pulse


def test_a_time_out_makes_it_slow_and_lost_only_after_a_while() -> None:
    pulse = Pulse(lost_after=30, heard_at=0)
    assert pulse.answered(1) is Health.UP
    assert pulse.timed_out(10) is Health.SLOW
    assert pulse.alive
    assert pulse.timed_out(30.9) is Health.SLOW
    assert pulse.timed_out(31) is Health.LOST
    assert not pulse.alive
    assert pulse.answered(40) is Health.UP


def test_an_event_is_a_sign_of_life() -> None:
    pulse = Pulse(lost_after=30, heard_at=0)
    pulse.answered(0)
    pulse.heard(29)
    assert pulse.timed_out(40) is Health.SLOW
    assert pulse.timed_out(59) is Health.LOST


def test_a_refused_connection_means_gone_at_once() -> None:
    pulse = Pulse(lost_after=30, heard_at=0)
    pulse.answered(1)
    assert pulse.refused() is Health.GONE
    assert pulse.timed_out(2) is Health.GONE


def test_one_that_never_answered_is_not_slow() -> None:
    pulse = Pulse(lost_after=30, heard_at=0)
    assert pulse.timed_out(5) is Health.STARTING
    assert not pulse.alive
    assert pulse.timed_out(30) is Health.LOST
