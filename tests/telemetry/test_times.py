"""Times as text, and clocks that were set."""

from __future__ import annotations

from gateway.telemetry.times import SteadyClock, iso, iso_or_none

DAY = 86_400.0


def test_times_are_told_in_utc_to_the_second() -> None:
    assert iso(1_795_816_800.999) == iso_or_none(1_795_816_800) == "2026-11-27T22:00:00Z"
    assert iso_or_none(None) is None


def test_a_clock_is_trusted_once_it_was_not_set_for_a_while() -> None:
    clock = SteadyClock(hold=100.0, wall=5_000.0, monotonic=7.0)
    looks = [
        (5_060.0, 67.0, False),
        # Clocks that are kept right go apart by little.
        (5_111.0, 108.0, True),
        (5_111.0 + 40 * DAY, 109.0, False),
        (5_210.0 + 40 * DAY, 208.0, False),
        (5_211.0 + 40 * DAY, 209.0, True),
        (5_212.0, 210.0, False),
    ]
    for wall, monotonic, is_steady in looks:
        assert clock.is_steady(wall, monotonic) is is_steady
