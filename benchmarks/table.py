"""Ratios, and the table of results."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    what: str
    figure: str
    yardstick: str
    ratio: str
    wanted: str


async def in_turns(
    rounds: int, ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]]
) -> tuple[float, float, list[float]]:
    """Measure two things in turns: (median of ours, median of theirs, ratio of each round)."""
    pairs = []
    for _ in range(rounds):
        pairs.append((await ours(), await theirs()))
    ratios = [mine / other for mine, other in pairs]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), ratios


def ratio(ratios: list[float]) -> str:
    """The median and the spread."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def render(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| what | gateway | yardstick | ratio (spread) | wanted |", "|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.figure} | {r.yardstick} | {r.ratio} | {r.wanted} |" for r in rows]
    return "\n".join(lines)
