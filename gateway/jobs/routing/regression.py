"""Regression of run times on a workload's features, kept as sums, so that a run is learned in constant time. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

# Coefficients: constant, model calls, model calls times megapixels, megapixels.
TERMS = 4
# Runs after which an old one counts for a third.
MEMORY_RUNS = 200.0
# Part of each diagonal that is added to it, so that few runs give small coefficients instead of absurd ones.
RIDGE = 1e-4
_SUBSETS = tuple(each for size in range(1, TERMS + 1) for each in combinations(range(TERMS), size))


class Regression:
    """Fit of seconds = a + b·ev + c·ev·px + d·px, by relative errors, with no coefficient below zero."""

    def __init__(self) -> None:
        self.runs = 0.0
        self._squares = [[0.0] * TERMS for _ in range(TERMS)]
        self._sums = [0.0] * TERMS
        self._coefficients: tuple[float, float, float, float] | None = None

    def learn(self, ev: float, px: float, seconds: float, weight: float = 1.0) -> None:
        """Take a run in, and let older ones count for less."""
        if not (seconds > 0 and math.isfinite(seconds)):
            return
        row = [each / seconds for each in _row(ev, px)]
        kept = 1.0 - weight / MEMORY_RUNS
        self.runs = self.runs * kept + weight
        for i in range(TERMS):
            self._sums[i] = self._sums[i] * kept + weight * row[i]
            for j in range(TERMS):
                self._squares[i][j] = self._squares[i][j] * kept + weight * row[i] * row[j]
        self._coefficients = None

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """Return the coefficients a, b, c, d."""
        if self._coefficients is None:
            self._coefficients = _fit(self._squares, self._sums)
        return self._coefficients

    def fit(self) -> None:
        """Calculate the coefficients now, so that no decision has to."""
        self._coefficients = _fit(self._squares, self._sums)

    def predict(self, ev: float, px: float) -> float:
        """Return the seconds of a run; 0.0 if nothing was learned."""
        a, b, c, d = self.coefficients
        return a + ev * (b + c * px) + d * px

    def record(self) -> list[float]:
        """Return the sums, for the store."""
        return [self.runs, *self._sums, *(each for row in self._squares for each in row)]

    @classmethod
    def restore(cls, record: Any) -> Regression | None:
        """Return the regression of a record; None if the record is malformed."""
        if not isinstance(record, list) or len(record) != 1 + TERMS + TERMS * TERMS:
            return None
        if not all(isinstance(each, (int, float)) and math.isfinite(each) and each >= 0 for each in record):
            return None
        restored = cls()
        restored.runs, restored._sums = float(record[0]), [float(each) for each in record[1 : 1 + TERMS]]
        squares = [float(each) for each in record[1 + TERMS :]]
        restored._squares = [squares[at : at + TERMS] for at in range(0, TERMS * TERMS, TERMS)]
        return restored


def _row(ev: float, px: float) -> tuple[float, float, float, float]:
    return 1.0, ev, ev * px, px


def _fit(squares: Sequence[Sequence[float]], sums: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the non-negative coefficients with the least squares: the best of all subsets of the terms.

    Of a subset's solution x the sum of squares is, but for a constant, -x·sums, because x solves its normal equations.
    """
    best, best_gain = [0.0] * TERMS, 0.0
    for subset in _SUBSETS:
        solved = _solve(
            [[squares[i][j] * (1 + RIDGE * (i == j)) for j in subset] for i in subset], [sums[i] for i in subset]
        )
        if solved is None or min(solved) < 0:
            continue
        gain = sum(each * sums[i] for each, i in zip(solved, subset, strict=True))
        if gain > best_gain:
            full = [0.0] * TERMS
            for each, i in zip(solved, subset, strict=True):
                full[i] = each
            best, best_gain = full, gain
    return best[0], best[1], best[2], best[3]


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Solve a small symmetric system by Cholesky's method; None if it is singular."""
    size = len(right)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            if i == j:
                if rest <= 1e-12 * matrix[i][i] or rest <= 0:
                    return None
                lower[i][i] = math.sqrt(rest)
            else:
                lower[i][j] = rest / lower[j][j]
    half = [0.0] * size
    for i in range(size):
        half[i] = (right[i] - sum(lower[i][k] * half[k] for k in range(i))) / lower[i][i]
    solution = [0.0] * size
    for i in reversed(range(size)):
        solution[i] = (half[i] - sum(lower[k][i] * solution[k] for k in range(i + 1, size))) / lower[i][i]
    return solution
