"""Busy seconds of backends."""

from __future__ import annotations

from gateway.telemetry.busy_time import BusyTime


def _seconds(busy: BusyTime, now: float) -> dict[str, float]:
    return {labels[0]: seconds for labels, seconds in busy.seconds(now)}


def test_time_with_a_running_job_counts_while_it_runs_and_once() -> None:
    busy = BusyTime()
    busy.begin("b1", 10.0)
    assert _seconds(busy, 12.0) == {"b1": 2.0}
    busy.begin("b1", 13.0)
    busy.end("b1", 14.0)
    assert _seconds(busy, 15.0) == {"b1": 5.0}
    busy.end("b1", 16.0)
    assert _seconds(busy, 99.0) == {"b1": 6.0}


def test_a_prompt_of_somebody_else_counts_too() -> None:
    busy = BusyTime()
    busy.foreign("b1", 0.0, runs=False)
    assert _seconds(busy, 1.0) == {}
    busy.foreign("b1", 1.0, runs=True)
    busy.begin("b1", 2.0)
    busy.foreign("b1", 3.0, runs=False)
    busy.end("b1", 4.0)
    assert _seconds(busy, 9.0) == {"b1": 3.0}
