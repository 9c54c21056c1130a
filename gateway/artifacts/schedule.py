"""Schedule of attempts: when a copy is tried again, how many are made at a time, and if the store may be asked. Pure.

Times are seconds of the monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

# Seconds before a copy is tried again: doubled with each failure.
FIRST_WAIT, MAX_WAIT = 1.0, 600.0
# Seconds before a store that fails is asked again: doubled with each failure.
FIRST_PROBE, MAX_PROBE = 1.0, 60.0
# A wait is longer by up to this part of it, so that what failed together is not tried again together.
JITTER = 0.25
# A file is missing for good if its backend answers so this often.
MAX_MISSING = 3
_DOUBLINGS = 20


def wait_after(tries: int, chance: float) -> float:
    """Return the seconds from a failed attempt to the next.

    Args:
        tries: the number of failed attempts so far, this one included.
        chance: a random number from 0 to 1.
    """
    wait = min(FIRST_WAIT * 2.0 ** min(tries - 1, _DOUBLINGS), MAX_WAIT)
    return wait * (1 + JITTER * chance)


class Slots:
    """Slots for the copies that are made at a time.

    A source takes half of them at most, unless it is alone, because one that is slow would hold up all others.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._taken = Counter[str]()

    @property
    def are_left(self) -> bool:
        """Return True if some source may have a slot."""
        return self._taken.total() < self._maximum

    @property
    def are_all_free(self) -> bool:
        """Return True if no copy is made."""
        return not self._taken

    def has_one(self, source: str, *, is_alone: bool) -> bool:
        """Return True if a source may begin a copy."""
        share = self._maximum if is_alone else math.ceil(self._maximum / 2)
        return self.are_left and self._taken[source] < share

    def take(self, source: str) -> None:
        """Note that a copy from a source began."""
        self._taken[source] += 1

    def give_back(self, source: str) -> None:
        """Note that it ended."""
        self._taken[source] -= 1
        if not self._taken[source]:
            del self._taken[source]


@dataclass(slots=True)
class StoreHealth:
    """Judgement of the store. While it fails, one attempt at a time finds out if it is back."""

    failures: int = 0
    probe_at: float = 0.0
    is_probing: bool = False

    @property
    def is_up(self) -> bool:
        """Return True if the last attempt did not fail for the store's sake."""
        return self.failures == 0

    def admits(self, now: float) -> bool:
        """Return True if the store may be asked."""
        return self.is_up or (now >= self.probe_at and not self.is_probing)

    def begin(self) -> None:
        """Note that the store is asked. While it fails, nobody else may ask it until the outcome is noted."""
        self.is_probing = not self.is_up

    def failed(self, now: float, chance: float) -> bool:
        """Note a failure. Return True if it is the first one."""
        is_first, self.is_probing = self.is_up, False
        self.failures += 1
        wait = min(FIRST_PROBE * 2.0 ** min(self.failures - 1, _DOUBLINGS), MAX_PROBE)
        self.probe_at = now + wait * (1 + JITTER * chance)
        return is_first

    def succeeded(self) -> bool:
        """Note a success. Return True if the store failed before."""
        is_back, self.failures, self.is_probing = not self.is_up, 0, False
        return is_back

    def ended(self) -> None:
        """Note that an attempt ended that tells nothing of the store."""
        self.is_probing = False
