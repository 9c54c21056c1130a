"""Sizes and times with units: ``100MB``, ``64MiB``, ``30s``, ``7d``. A plain number stays bytes, or seconds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

from pydantic import BeforeValidator

_SECONDS = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
    "w": Fraction(604_800),
}
_BYTES = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
_TIME = re.compile(r"(?:\d{1,18}(?:\.\d{1,9})?\s*(?:ms|[smhdw])\s*)+")
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhdw])")
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]i?b|b)")


class Unit(StrEnum):
    """The kind of a quantity."""

    SECONDS = "seconds"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Measured:
    """A mark in a setting's type: the setting takes this unit."""

    unit: Unit


def seconds_of(given: Any) -> Any:
    """Return the seconds of a text such as ``30s`` or ``1h30m``; anything else as it is."""
    if not isinstance(given, str):
        return given
    text = given.strip().lower()
    if not _TIME.fullmatch(text):
        return given
    total = sum(Fraction(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return int(total) if total.denominator == 1 else float(total)


def bytes_of(given: Any) -> Any:
    """Return the bytes of a text such as ``100MB`` or ``1.5GiB``; anything else as it is."""
    match = _SIZE.fullmatch(given.strip().lower()) if isinstance(given, str) else None
    if match is None:
        return given
    total = Fraction(match[1]) * _BYTES[match[2]]
    return int(total) if total.denominator == 1 else given


TIMES = (Measured(Unit.SECONDS), BeforeValidator(seconds_of))
SIZES = (Measured(Unit.BYTES), BeforeValidator(bytes_of))


def with_unit(number: float, unit: Unit | None) -> str:
    """Return a number as a person would write it: ``30s``, ``7d``, ``64MiB``."""
    if unit is None or math.isinf(number):
        return f"{number:g}" if isinstance(number, float) else str(number)
    if unit is Unit.BYTES:
        for name in ("TiB", "GiB", "MiB", "KiB"):
            if number and number % _BYTES[name.lower()] == 0:
                return f"{int(number) // _BYTES[name.lower()]}{name}"
        return f"{number:g}" if number < 1_000_000 else str(int(number))
    for name in ("d", "h", "m"):
        if number and number % float(_SECONDS[name]) == 0:
            return f"{int(number // float(_SECONDS[name]))}{name}"
    return f"{number:g}s"
