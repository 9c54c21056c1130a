"""Times as people write them: ``30d``, or a day."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
# The last second of 9999, because a datetime can't hold a later one.
_LAST = 253_402_300_799.0


class NoTime(ValueError):
    """Refusal of a text that is no time; the message names the forms that are accepted."""


def time_of(text: str, now: float) -> float:
    """Return the time (seconds since 1970) that a text means: a duration from `now`, or a date in ISO 8601.

    A date without a zone is in UTC.

    Raises:
        NoTime: the text is neither.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is not None:
        return min(now + int(match[1]) * _UNITS[match[2]], _LAST)
    try:
        parsed = datetime.fromisoformat(text.strip())
        return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise NoTime("give a duration such as 30d, 12h or 4w, or a time such as 2026-12-24T00:00:00Z") from error
