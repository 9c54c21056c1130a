"""Budgets of a backend's time for reads that clients cause: at most 1 % of it, in three parts. Pure.

The parts are apart, so that a long read of all node classes does not delay the short reads that find a new model, and
wrong prompts delay neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

# Shares of a backend's time. Together they are 1 %.
ALL_CLASSES_SHARE = 0.001
FOLDERS_SHARE = 0.0065
PROMPTS_SHARE = 0.0025
# Seconds in which a part keeps its share, however its reads are spread.
WINDOW_SECONDS = 60.0
# Seconds for which an idle part saves up.
SAVING_SECONDS = 10.0
# Seconds until the next read after one that failed: a backend whose loop is blocked must not collect requests.
AFTER_FAILURE_SECONDS = 15.0
# Seconds between the begin of two looks at the folders, however short they are: the gateway's own time counts, too.
MIN_LOOK_PAUSE = 1.5
# The factor by which the cost of a read rises at most from one read to the next.
MAX_RISE = 1.08
# Cost of an answer to begin with, in seconds. An idle ComfyUI takes less.
USUAL_ANSWER = 0.0005


def free_at(read_at: float, seconds: float, share: float) -> float:
    """Return the time from which a part has room again, after a read that ended at `read_at` and took `seconds`."""
    return read_at + seconds / share


@dataclass(slots=True)
class Cost:
    """Cost of a read: about how many seconds of its loop's time a backend spends on it.

    An answer takes longer than it costs while the backend runs a node, or the machine is busy. It never takes less. So
    the cost follows a shorter answer at once, and longer ones slowly.
    """

    seconds: float

    def note(self, seconds: float) -> None:
        """Note how long an answer took."""
        self.seconds = min(seconds, self.seconds * MAX_RISE)


@dataclass(slots=True)
class Budget:
    """One part of a backend's budget. It saves seconds while nothing is read, and a read spends them.

    In any `WINDOW_SECONDS` the reads spend no more than the share of it: what was saved, and what comes meanwhile. Only
    a read that costs more than can be saved spends more at once, and the pause after it is so much longer.

    Args:
        min_pause: seconds between the begin of two reads, however short they are.
    """

    share: float
    min_pause: float = 0.0
    _saved: float = field(init=False)
    _saved_at: float = -inf
    _not_before: float = -inf

    def __post_init__(self) -> None:
        self._saved = self._capacity

    @property
    def _capacity(self) -> float:
        return self.share * SAVING_SECONDS

    @property
    def _rate(self) -> float:
        return self.share * (WINDOW_SECONDS - SAVING_SECONDS) / WINDOW_SECONDS

    def free_at(self, cost: float) -> float:
        """Return the time from which a read of this cost may begin (monotonic seconds)."""
        lacking = min(cost, self._capacity) - self._saved
        return max(self._not_before, self._saved_at + max(lacking, 0.0) / self._rate)

    def has_room(self, now: float, cost: float) -> bool:
        """Return True if a read of this cost may begin."""
        return now >= self.free_at(cost)

    def begin(self, now: float) -> None:
        """Note that a read begins now."""
        self._not_before = now + self.min_pause

    def spend(self, now: float, cost: float) -> None:
        """Note that a read of this cost ended now."""
        self._saved = min(self._capacity, self._saved + (now - self._saved_at) * self._rate) - cost
        self._saved_at = now

    def fail(self, now: float) -> None:
        """Note that a read failed now."""
        self._not_before = now + AFTER_FAILURE_SECONDS
