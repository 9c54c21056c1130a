"""Budgets of a backend's time for reads that clients cause: at most 1 % of it, in three parts. Pure.

Each part waits, after a read, many times as long as the read took. The parts are apart, so that a long read of all node
classes does not delay the short reads that find a new model, and wrong prompts delay neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

# Shares of a backend's time. Together they are 1 %.
ALL_CLASSES_SHARE = 0.002
FOLDERS_SHARE = 0.006
PROMPTS_SHARE = 0.002
# Seconds until the next read after one that failed: a backend whose loop is blocked must not collect requests.
AFTER_FAILURE_SECONDS = 15.0
# Seconds between two reads that prompts cause, however short the reads are.
MIN_PROMPTS_PAUSE = 1.0


def free_at(read_at: float, seconds: float, share: float) -> float:
    """Return the time from which a part has room again, after a read that ended at `read_at` and took `seconds`."""
    return read_at + seconds / share


@dataclass(slots=True)
class Budget:
    """One part of a backend's budget. It has room for a read from `free_at` on (monotonic seconds)."""

    share: float
    min_pause: float = 0.0
    free_at: float = -inf

    def has_room(self, now: float) -> bool:
        """Return True if a read may begin."""
        return now >= self.free_at

    def spend(self, now: float, seconds: float) -> None:
        """Note that a read ended now, and took so many seconds."""
        self.free_at = now + max(seconds / self.share, self.min_pause)

    def fail(self, now: float) -> None:
        """Note that a read failed now."""
        self.free_at = now + AFTER_FAILURE_SECONDS
