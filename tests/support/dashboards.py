"""Grafana's dashboards as they are shipped: their panels, their queries, and the variables in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.scaled_rules import milliseconds

FOLDER = Path(__file__).parents[2] / "config" / "grafana"
SCRAPE_MILLISECONDS = 15_000
# An expression that returns 0 where another has no series.
FALLBACK = ' or 0 * sum(comfyui_gateway_build_info{instance=~"$instance"})'


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels of a dashboard, rows aside, those of folded rows among them."""
    for panel in dashboard["panels"]:
        yield from [panel] if panel["type"] != "row" else panel["panels"]


@dataclass(frozen=True)
class Shown:
    """A query of a panel, with the name of the panel."""

    where: str
    expr: str
    legend: str
    instant: bool
    exemplars: bool
    interval: int

    @property
    def labels(self) -> set[str]:
        """The labels that its legend names."""
        return set(re.findall(r"{{(\w+)}}", self.legend))


def queries() -> list[Shown]:
    """All queries of all panels. `interval` is the shortest one between two points, in milliseconds."""
    found = []
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            interval = milliseconds(panel["interval"]) if "interval" in panel else SCRAPE_MILLISECONDS
            for target in panel["targets"]:
                where = f"{name}: {panel['title']}: {target['refId']}"
                about = target["legendFormat"], target["instant"], target.get("exemplar", False)
                found.append(Shown(where, target["expr"], *about, interval))
    return found


def variables(dashboard: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The variables of a dashboard by name."""
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def filled(text: str, values: dict[str, str]) -> str:
    """A text with Grafana's variables in it; each must have a value."""
    return re.sub(r"\$(?:{(\w+)}|(\w+))", lambda found: values[found[1] or found[2]], text)


def rate_interval(interval: int, scrape: int) -> int:
    """Grafana's ``$__rate_interval``, in milliseconds, of an interval between points and one between scrapes."""
    return max(interval + scrape, 4 * scrape)


def escaped(values: list[str]) -> str:
    """Some choices of a variable, as Grafana writes them for a regular expression in PromQL."""
    each = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", value.replace("\\", r"\\\\")) for value in values]
    return each[0] if len(each) == 1 else f"({'|'.join(each)})"
