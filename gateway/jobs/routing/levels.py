"""Parts of an estimate, each a mean with its uncertainty. A run corrects the parts that are the least certain. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Variances of a part's drift from one run to the next, so that old runs fade.
DRIFT = 0.0001
# Bounds of the noise of one signature's runs, as a variance of logarithms.
MIN_NOISE, USUAL_NOISE, MAX_NOISE = 0.0025, 0.02, 1.5
# A part's mean stays within these logarithms.
MAX_LOG = 14.0


@dataclass(slots=True)
class Level:
    """Logarithm of a factor: its mean, and the variance of that mean. `factor` is its exponential."""

    mean: float
    variance: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        self.mean = min(max(self.mean, -MAX_LOG), MAX_LOG)
        self.factor = math.exp(self.mean)

    def correct(self, share: float, residual: float) -> None:
        """Take a share of a residual in. The share is the part of the whole variance that is this level's."""
        self.mean = min(max(self.mean + share * residual, -MAX_LOG), MAX_LOG)
        self.variance = self.variance * (1.0 - share) + DRIFT
        self.factor = math.exp(self.mean)


@dataclass(slots=True)
class Size:
    """Work of a signature: its seconds at usual speed as a level, the noise of its runs, its features, its runs.

    `expected` are the expected seconds at usual speed: more than the median, because long runs are longer than short.
    """

    model: str
    ev: float
    px: float
    level: Level
    noise: float = USUAL_NOISE
    runs: int = 0
    expected: float = 0.0

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Calculate `expected` anew, because the level or the noise changed."""
        self.expected = self.level.factor * math.exp(min(self.noise, 1.0) / 2)

    def note_noise(self, square: float) -> None:
        """Take the square of a residual in, less what the levels' uncertainty explains."""
        gain = max(1.0 / (self.runs + 3), 0.05)
        self.noise += gain * (min(max(square, MIN_NOISE), MAX_NOISE) - self.noise)


def correct(levels: Sequence[Level], residual: float, noise: float) -> None:
    """Share a residual out among levels, by their variances."""
    whole = sum(level.variance for level in levels) + noise
    for level in levels:
        level.correct(level.variance / whole, residual)


def numbers(record: Any, count: int) -> list[float] | None:
    """Return a record's finite numbers if it is a list of so many; else None."""
    if not isinstance(record, list) or len(record) != count:
        return None
    if not all(isinstance(each, (int, float)) and math.isfinite(each) and abs(each) < 1e9 for each in record):
        return None
    return [float(each) for each in record]


def normal_cdf(z: float) -> float:
    """Return the probability of a standard normal value below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def expected_rest(median: float, sigma: float, elapsed: float) -> float:
    """Return the seconds that a run still takes on average, if it has run for `elapsed` and its time is log-normal."""
    if elapsed <= 0:
        return median * math.exp(sigma * sigma / 2)
    z = math.log(elapsed / median) / sigma
    survival = normal_cdf(-z)
    if survival < 1e-4:
        # Far beyond all that was seen, the rest is about the elapsed time over the slope of the tail.
        return elapsed * min(max(sigma / z, 0.05), 1.0)
    whole = median * math.exp(sigma * sigma / 2) * normal_cdf(sigma - z) / survival
    return max(whole - elapsed, 0.02 * elapsed)
