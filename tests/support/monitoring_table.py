"""The table of the guide's signals in docs/monitoring.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring.md"


@dataclass(frozen=True)
class Signal:
    """A row: a line of the production guide, and the metrics or log events, alerts and tests that are named for it."""

    line: str
    metrics: tuple[str, ...]
    events: tuple[str, ...]
    alerts: tuple[str, ...]
    tests: tuple[str, ...]


def signals() -> list[Signal]:
    """Return all rows. The names of metrics have no prefix."""
    found = re.findall(r"^## The guide's signals\n(.*?)^## ", MONITORING.read_text(), re.MULTILINE | re.DOTALL)
    (section,) = found
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return [_signal(*row) for row in rows]


def _signal(line: str, sources: str, alerts: str, tests: str) -> Signal:
    events = re.findall(r"\[`(\w+)`\]\(logs\.md\)", sources)
    names = [name for name in re.findall(r"`([^`]+)`", sources) if name not in events]
    return Signal(
        line, tuple(names), tuple(events), *(tuple(re.findall(r"`([^`]+)`", cell)) for cell in (alerts, tests))
    )
