"""Thresholds and value mappings of panels. Where there is an alert, the threshold is that of its rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

ALERTS_FILE = Path(__file__).parent.parent / "prometheus" / "alerts.yml"
GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"
# From mild to severe.
COLOURS = {"info": YELLOW, "warning": ORANGE, "page": RED}
_COMPARISON = re.compile(r"[<>]\s*([\d.]+(?:\s*\*\s*[\d.]+)?)(?:\s*\*\s*comfyui_gateway:\S+)?(?=\s|$)")


@dataclass(frozen=True)
class Alert:
    """An alert: its name, its severity, and the first number with which its expression compares."""

    name: str
    severity: str
    limit: float
    is_lower: bool


def _read_alerts() -> dict[str, Alert]:
    groups = yaml.safe_load(ALERTS_FILE.read_text())["groups"]
    found = {}
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        match = _COMPARISON.search(rule["expr"])
        factors = [float(factor) for factor in match[1].split("*")] if match else [1.0]
        limit = factors[0] * (factors[1] if len(factors) > 1 else 1.0)
        is_lower = match is not None and match[0].startswith("<")
        found[rule["alert"]] = Alert(rule["alert"], rule["labels"]["severity"], limit, is_lower)
    return found


ALERTS = _read_alerts()


def thresholds(alerts: Sequence[str], *, scale: float = 1.0, from_one: bool = False, whole: bool = False) -> Json:
    """Return the thresholds of a panel at its alerts' limits, in the colours of their severities.

    Args:
        alerts: their names. Those that look for low values make high values green.
        scale: the unit of the panel in the unit of the alert.
        from_one: True if the alert looks at the free share, and the panel shows the used one.
        whole: True for whole numbers: a colour begins at its step, and an alert beyond its limit.
    """
    named = [ALERTS[name] for name in alerts]
    is_lower = any(alert.is_lower for alert in named) and not from_one
    limits: dict[float, str] = {}
    for alert in sorted(named, key=lambda alert: list(COLOURS).index(alert.severity)):
        limit = round((1 - alert.limit if from_one else alert.limit) / scale, 6) + whole
        limits[limit] = COLOURS[alert.severity]
    ordered = sorted(limits.items())
    if not is_lower:
        steps = [(None, GREEN), *ordered]
    else:
        # A colour holds from its limit downwards, so each begins at the limit below it.
        starts = [None, *(limit for limit, _ in ordered)]
        steps = list(zip(starts, [*(colour for _, colour in ordered), GREEN], strict=True))
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]}


def levels(*steps: tuple[float | None, str]) -> Json:
    """Return thresholds that no alert has."""
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for value, colour in steps]}


# What is red from one on, and what just is.
NONE_IS_GOOD = levels((None, GREEN), (1, RED))
PLAIN = levels((None, BLUE))


def mapping(texts: Mapping[str, tuple[str, str]]) -> list[Json]:
    """Return value mappings: a value, or a range such as ``10-19``, to its text and colour."""
    made: list[Json] = []
    for index, (value, (text, colour)) in enumerate(texts.items()):
        result = {"text": text, "color": colour, "index": index}
        low, dash, high = value.partition("-")
        if dash:
            made.append({"type": "range", "options": {"from": float(low), "to": float(high), "result": result}})
        else:
            made.append({"type": "value", "options": {value: result}})
    return made
