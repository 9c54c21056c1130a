"""Expected time until a job is done (ETA), with an interval that holds 80% of the real times. Pure.

The spread of learned times gives the interval's form. `Calibration` widens or narrows it by the ETAs of jobs that have
ended, because jobs that come later may pass, and a queue is not as regular as its parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

from gateway.jobs.routing.levels import normal_cdf, numbers
from gateway.jobs.routing.times import Estimate

_NORMAL = NormalDist()
# Parts of real times that lie below and above the interval.
BELOW, ABOVE = 0.1, 0.9
# Bounds of the calibrated quantiles, in standard deviations.
MAX_QUANTILE = 12.0
# Standard deviation of the logarithm of any ETA, at least and at most.
MIN_SIGMA, MAX_SIGMA = 0.05, 1.5
# Steps in which a tenant sees the fleet's load, in seconds.
_STEPS = (0, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600)
# Steps in which a tenant sees how many jobs there are for each backend.
_LOADS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)


@dataclass(frozen=True, slots=True)
class Expectation:
    """Seconds until a job is done: the usual, the deviation of their logarithm, and how much of them is waiting.

    `waits` is 0 for a job that runs, 1 for one that starts soon, 2 for one whose wait is longer than its run.
    """

    seconds: float
    sigma: float
    waits: int


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds until a job is done: the expected ones, and an interval that holds 80% of the real ones."""

    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Shown:
    """Knowledge of an open job that its tenant is shown.

    `place` counts the tenant's own jobs that go before it. `load` is the number of jobs for each backend, in coarse
    steps. `expected` and `eta` are None if nothing is known yet. `at` is the monotonic clock.
    """

    place: int
    load: int
    expected: Expectation | None
    eta: Eta | None
    at: float


def expect_running(run: Estimate, load_seconds: float, elapsed: float) -> Expectation:
    """Return the expectation for a job that has run for `elapsed` seconds, with a load before the work or without."""
    elapsed_work = max(elapsed - load_seconds, 0.0)
    sigma = max(run.sigma, MIN_SIGMA)
    middle, low, high = (_rest_quantile(run.median, sigma, elapsed_work, part) for part in (0.5, BELOW, ABOVE))
    load = max(load_seconds - elapsed, 0.0)
    spread = math.log((high + load + 0.01) / (low + load + 0.01)) / (2 * 1.2816)
    return Expectation(middle + load, _bounded(spread), 0)


def expect_start(run: Estimate, load_seconds: float, starts: float, speed: float = 1.0) -> Expectation:
    """Return the expectation for a job that waits.

    Args:
        run: a run of the job at usual speed.
        load_seconds: the load that its run is likely to have.
        starts: the seconds until it starts.
        speed: the speed of the backends that are ready by then.
    """
    own = run.mean / speed + load_seconds
    seconds = starts + own
    sigma = math.hypot(own * run.sigma, 0.3 * starts) / max(seconds, 0.001)
    return Expectation(seconds, _bounded(sigma), 2 if starts > own else 1)


def in_steps(seconds: float) -> float:
    """Return a time in coarse steps, so that a tenant sees the fleet's load but no other tenant's jobs."""
    for below, above in pairwise(_STEPS):
        if seconds <= (below + above) / 2:
            return float(below)
    return round(seconds / 1_800) * 1_800.0


def load_step(jobs: int, backends: int) -> int:
    """Return the jobs for each backend in coarse steps; 0 if a backend has none."""
    step = 0
    for each in _LOADS:
        if jobs < each * backends:
            break
        step = each
    return step


class Calibration:
    """Quantiles of real times among the expected ones, in standard deviations, by how long jobs wait.

    Each end moves a quantile by a small step: up if the time was above, down if it was below, in such a ratio that it
    stays where 10% or 90% of the times are below.

    Args:
        width: the width of the first intervals, compared with one that is right if expectations are.
    """

    def __init__(self, width: float = 1.0) -> None:
        self._quantiles = [[-1.2816 * width, 0.0, 1.2816 * width] for _ in range(3)]
        self._counts = [0, 0, 0]

    def eta(self, expected: Expectation) -> Eta:
        """Return the ETA of a job."""
        low, middle, high = self._quantiles[expected.waits]
        low, middle, high = (expected.seconds * math.exp(each * expected.sigma) for each in (low, middle, high))
        return Eta(middle, low, high)

    def learn(self, expected: Expectation, seconds: float) -> None:
        """Take the real time of an expectation in."""
        if expected.seconds <= 0 or seconds <= 0:
            return
        deviation = math.log(seconds / expected.seconds) / expected.sigma
        self._counts[expected.waits] += 1
        step = max(2.0 / math.sqrt(self._counts[expected.waits] + 3), 0.1)
        quantiles = self._quantiles[expected.waits]
        for place, part in enumerate((BELOW, 0.5, ABOVE)):
            moved = quantiles[place] + step * (part - (deviation < quantiles[place]))
            quantiles[place] = min(max(moved, -MAX_QUANTILE), MAX_QUANTILE)
        quantiles.sort()

    def record(self) -> list[list[float]]:
        """Return the quantiles and the counts, for the store."""
        return [[*quantiles, float(count)] for quantiles, count in zip(self._quantiles, self._counts, strict=True)]

    def restore(self, record: Any) -> None:
        """Take over what an earlier run learned; skip what is malformed."""
        for place, entry in enumerate(record[:3] if isinstance(record, list) else ()):
            found = numbers(entry, 4)
            if found is not None and max(map(abs, found[:3])) <= MAX_QUANTILE and found[3] >= 0:
                self._quantiles[place], self._counts[place] = sorted(found[:3]), int(found[3])


def error(expected: float, seconds: float) -> float:
    """Return the error of an expected time: the absolute logarithm of real over expected."""
    return abs(math.log(max(seconds, 0.001) / max(expected, 0.001)))


def _bounded(sigma: float) -> float:
    return min(max(sigma, MIN_SIGMA), MAX_SIGMA)


def _rest_quantile(median: float, sigma: float, elapsed: float, part: float) -> float:
    """Return a quantile of the seconds that a run still takes, if its time is log-normal."""
    reached = normal_cdf(math.log(elapsed / median) / sigma) if elapsed > 0 else 0.0
    if reached > 0.999:
        # Far beyond all that was seen, expect a part of the elapsed time.
        return elapsed * sigma * part
    wanted = reached + part * (1.0 - reached)
    return max(median * math.exp(sigma * _NORMAL.inv_cdf(wanted)) - elapsed, 0.001)
