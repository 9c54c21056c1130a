"""Plot of the policies' means, as SVG: a group of bars a trace, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

COLOURS = {
    "least_work": "#2563eb",
    "shortest_queue": "#d97706",
    "random_two": "#9333ea",
    "round_robin": "#dc2626",
    "pinned": "#78716c",
    "sketch: late binding": "#0d9488",
    "sketch: greedy": "#94a3b8",
}
WIDTH, BAR, GAP, LEFT, TOP = 900, 9, 14, 270, 46
# Seconds at the left and the right edge of the scale.
LOW, HIGH = 20.0, 5_000.0


def bars(means: Mapping[str, Mapping[str, float]]) -> str:
    """Return a plot of the mean seconds to done, by trace and policy."""
    parts, y = [], float(TOP)
    for case, found in means.items():
        height = len(found) * BAR
        parts.append(f'<text x="{LEFT - 10}" y="{y + height / 2 + 4:.0f}" text-anchor="end">{escape(case)}</text>')
        for name, mean in found.items():
            wide = _x(mean) - LEFT
            parts.append(f'<rect x="{LEFT}" y="{y:.0f}" width="{wide:.0f}" height="{BAR - 1}" fill="{COLOURS[name]}"/>')
            parts.append(f'<text x="{LEFT + wide + 4:.0f}" y="{y + BAR - 1:.0f}" font-size="8">{mean:.0f}</text>')
            y += BAR
        y += GAP
    for seconds in (20, 50, 100, 200, 500, 1000, 2000, 5000):
        x = _x(seconds)
        parts.insert(0, f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP - 6}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{TOP - 10}" text-anchor="middle">{seconds} s</text>')
    for place, (name, colour) in enumerate(COLOURS.items()):
        x = 10 + place * 125
        parts.append(f'<rect x="{x}" y="8" width="9" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{x + 13}" y="16">{name}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10:.0f}"'
    return f'{head} font-family="sans-serif" font-size="11">\n' + "\n".join(parts) + "\n</svg>\n"


def _x(seconds: float) -> float:
    part = math.log(min(max(seconds, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return LEFT + part * (WIDTH - LEFT - 60)
