"""A token bucket: a rate that holds in the long run, and a burst that may come at once. Pure: time is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """It holds up to `capacity` tokens and gains `rate` a second; it is full at first. `at` is when it was last used.

    In any span of s seconds at most ``capacity + rate * s`` tokens are taken.
    """

    rate: float
    capacity: float
    tokens: float
    at: float

    @classmethod
    def full(cls, rate: float, capacity: float, now: float) -> TokenBucket:
        """A bucket that nothing was taken from yet."""
        return cls(rate, capacity, capacity, now)

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take `count` tokens, if there are so many. A clock that goes back adds nothing."""
        tokens = self.tokens
        if now > self.at:
            tokens = min(self.capacity, tokens + (now - self.at) * self.rate)
            self.at = now
        if tokens < count:
            self.tokens = tokens
            return False
        self.tokens = tokens - count
        return True

    def left(self, now: float) -> float:
        """The tokens in it."""
        return min(self.capacity, self.tokens + max(now - self.at, 0.0) * self.rate)

    def next_in(self, now: float, count: float = 1.0) -> float:
        """Seconds until there are `count` tokens; 0 if there are."""
        return max(count - self.left(now), 0.0) / self.rate

    def full_in(self, now: float) -> float:
        """Seconds until it is full."""
        return (self.capacity - self.left(now)) / self.rate


def whole_seconds(seconds: float) -> int:
    """Seconds for a Retry-After: whole ones, at least 1, never too few (RFC 9110, section 10.2.3)."""
    return max(1, math.ceil(seconds))
