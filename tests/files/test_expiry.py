"""Which uploads nobody has used for long, by clocks that may be wrong."""

from __future__ import annotations

from gateway.files.expiry import HOLD_SECONDS, Expiry

DAY = 86_400.0
USED = {"a": int(100 * DAY * 1000)}


def test_what_is_too_old_for_an_hour_on_end_goes() -> None:
    expiry = Expiry(30 * DAY)
    wall = 130 * DAY + 1
    assert expiry.expired(USED, wall - 10, 0) == []
    assert expiry.expired(USED, wall, 10) == []
    assert expiry.expired(USED, wall + HOLD_SECONDS - 1, 10 + HOLD_SECONDS - 1) == []
    assert expiry.expired(USED, wall + HOLD_SECONDS, 10 + HOLD_SECONDS) == ["a"]


def test_a_use_in_that_hour_starts_it_anew() -> None:
    expiry, wall = Expiry(30 * DAY), 140 * DAY
    assert expiry.expired(USED, wall, 0) == []
    assert expiry.expired({"a": int(wall * 1000)}, wall + 1000, 1000) == []
    assert expiry.expired(USED, wall + 2000, 2000) == []
    assert expiry.expired(USED, wall + 1000 + HOLD_SECONDS, 1000 + HOLD_SECONDS) == []


def test_a_clock_that_jumps_starts_it_anew() -> None:
    """Ahead for a while, and back: nothing goes. Ahead for good: an hour later it is believed."""
    expiry, wall = Expiry(30 * DAY), 101 * DAY
    assert expiry.expired(USED, wall, 0) == []
    assert expiry.expired(USED, wall + 40 * DAY, 300) == []
    assert expiry.expired(USED, wall + 600, 600) == []
    assert expiry.expired(USED, wall + 40 * DAY + HOLD_SECONDS, HOLD_SECONDS) == []
    assert expiry.expired(USED, wall + 40 * DAY + 2 * HOLD_SECONDS, 2 * HOLD_SECONDS) == ["a"]


def test_a_clock_that_runs_a_little_wrong_is_believed() -> None:
    expiry, wall = Expiry(30 * DAY), 140 * DAY
    found = [expiry.expired(USED, wall + n * 305, n * 300) for n in range(13)]
    assert found == [[]] * 12 + [["a"]]
