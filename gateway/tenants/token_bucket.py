"""A token bucket: a rate that holds in the long run, and a burst that may come at once. Pure: time is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """A bucket of up to `capacity` tokens that gains `rate` tokens a second. `at` is the time of its last use.

    In any span of s seconds at most ``capacity + rate * s`` tokens are taken.
    """

    rate: float
    capacity: float
    tokens: float
    at: float

    @classmethod
    def full(cls, rate: float, capacity: float, now: float) -> TokenBucket:
        """Return a full bucket."""
        return cls(rate, capacity, capacity, now)

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take `count` tokens and return True; return False if there are fewer. A clock that goes back adds nothing."""
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
        """Return the number of tokens in the bucket."""
        return min(self.capacity, self.tokens + max(now - self.at, 0.0) * self.rate)

    def next_in(self, now: float, count: float = 1.0) -> float:
        """Return the seconds until there are `count` tokens; 0 if there are now."""
        return max(count - self.left(now), 0.0) / self.rate

    def full_in(self, now: float) -> float:
        """Return the seconds until the bucket is full."""
        return (self.capacity - self.left(now)) / self.rate


def whole_seconds(seconds: float) -> int:
    """Return the seconds for a Retry-After, rounded up, at least 1 (RFC 9110, section 10.2.3)."""
    return max(1, math.ceil(seconds))
