"""Times as text, and the judgement if the wall clock can be trusted. Pure: times are passed in."""

from __future__ import annotations

from datetime import UTC, datetime

# Seconds for which this run must have seen what is to take longer: failures, an age, a clock that was not set.
HOLD_SECONDS = 3600.0
# A wall clock that goes this far from the monotonic one between two looks was set. Clocks that are kept right go apart
# by less.
SET_BY_SECONDS = 60.0


def iso(seconds: float) -> str:
    """Return a time (seconds since 1970) in UTC as text, to the second: ``2026-11-27T22:00:00Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_or_none(seconds: float | None) -> str | None:
    """Return a time as `iso` does; None for None."""
    return None if seconds is None else iso(seconds)


def was_set(before: float, now: float) -> bool:
    """Return True if the wall clock was set between two looks. Each is given as its seconds from the monotonic one."""
    return abs(now - before) > SET_BY_SECONDS


class SteadyClock:
    """Judgement if the wall clock can be trusted: it was not set for `hold` seconds, which this process has seen.

    A clock that is wrong, as at a machine's start, must not expire anything.
    """

    def __init__(self, hold: float, wall: float, monotonic: float) -> None:
        self._hold = hold
        self._offset = wall - monotonic
        self._since = monotonic

    def is_steady(self, wall: float, monotonic: float) -> bool:
        """Look at both clocks, and return True if the wall clock can be trusted."""
        offset = wall - monotonic
        if was_set(self._offset, offset):
            self._since = monotonic
        self._offset = offset
        return monotonic - self._since >= self._hold
