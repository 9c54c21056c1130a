"""The shipped rules with every duration divided by one factor, so that a test sees in seconds what takes minutes."""

from __future__ import annotations

import re
from typing import Any

import yaml

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 31_536_000_000}
_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
# Ranges, steps of subqueries, and offsets; nothing else in an expression is a duration.
_IN_EXPRESSIONS = re.compile(rf"(?<=\[){_DURATION}(?=[\]:])|(?<=:){_DURATION}(?=\])|(?<=\boffset ){_DURATION}")


def milliseconds(duration: str) -> int:
    """Return the length of a duration that is written as Prometheus does."""
    assert re.fullmatch(_DURATION, duration), duration
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", duration))


def divided(duration: str, factor: int) -> str:
    """Return a duration divided by the factor. Whole milliseconds must come out."""
    length, rest = divmod(milliseconds(duration), factor)
    assert rest == 0, (duration, factor)
    return f"{length}ms"


def ranges(expression: str) -> list[int]:
    """Return the ranges of an expression, in milliseconds."""
    return [milliseconds(found) for found in re.findall(rf"\[({_DURATION})", expression)]


def scaled(text: str, factor: int, scrape_milliseconds: int) -> str:
    """Return the rules of a file with every duration divided.

    Args:
        text: the file.
        factor: the divisor.
        scrape_milliseconds: the interval of scrapes; each range must hold four of them.
    """
    rules: dict[str, Any] = yaml.safe_load(text)
    for group in rules["groups"]:
        if "interval" in group:
            group["interval"] = divided(group["interval"], factor)
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = divided(rule["for"], factor)
            rule["expr"] = _IN_EXPRESSIONS.sub(lambda found: divided(found[0], factor), rule["expr"])
            assert all(each >= 4 * scrape_milliseconds for each in ranges(rule["expr"])), rule
    return yaml.safe_dump(rules)
