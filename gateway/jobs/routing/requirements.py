"""Requirements of jobs: conditions on the labels of a backend, and on the memory of its largest GPU. Pure.

`vram>=24,fast` asks for a backend that has the label `fast` and a GPU of at least 24 GB. All conditions must hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Bounds of a requirement as a client writes it.
MAX_LENGTH, MAX_CONDITIONS = 500, 16
GRAMMAR = (
    "give conditions separated by commas: a label of the backend, or vram with >=, >, <=, < or = and a number of GB, "
    "such as vram>=24,fast"
)
# A device is sold as one of 24 GB if it tells 21.6 to 24 GiB, because drivers and error correction take some of it.
LEAST_SHARE = 0.9
GIB = 2**30

# The settings have the same pattern (gateway/settings/base.py); a test compares both.
_CONDITION = re.compile(r"vram *(>=|<=|>|<|=) *([0-9]{1,6}(?:\.[0-9]{1,3})?)|([A-Za-z0-9][A-Za-z0-9_.-]{0,31})")


class MalformedRequirement(ValueError):
    """Failure to read a requirement. The text says which condition is wrong, and how one is written."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: a label, or an operator and an amount of memory in GB as devices are sold."""

    label: str = ""
    operator: str = ""
    amount: str = ""

    def __str__(self) -> str:
        return self.label or f"vram{self.operator}{self.amount}"

    def is_met(self, labels: frozenset[str], vram: int | None) -> bool | None:
        """Return True if a backend meets the condition, False if not, None if its memory is not known.

        Args:
            labels: the labels of the backend.
            vram: the bytes of its largest GPU, 0 if it has none; None if they are not known.
        """
        if self.label:
            return self.label in labels
        if vram is None:
            return None
        asked, told = float(self.amount), vram / GIB
        # Of two devices that are sold as one size, either both meet a condition or none does.
        is_at_least, is_above = told >= LEAST_SHARE * asked, told > asked
        if self.operator in (">=", "<"):
            return is_at_least is (self.operator == ">=")
        if self.operator in (">", "<="):
            return is_above is (self.operator == ">")
        return is_at_least and not is_above


# All conditions of a requirement. None of them: any backend will do.
Requirement = tuple[Condition, ...]


def parse_requirement(text: str) -> Requirement:
    """Return the conditions of a requirement; none if the text is blank.

    Raises:
        MalformedRequirement: a condition is malformed, or there are too many.
    """
    if not text.strip():
        return ()
    if len(text) > MAX_LENGTH:
        raise MalformedRequirement(f"it has {len(text)} characters; at most {MAX_LENGTH} are taken")
    parts = text.split(",")
    if len(parts) > MAX_CONDITIONS:
        raise MalformedRequirement(f"it has {len(parts)} conditions; at most {MAX_CONDITIONS} are taken")
    return parse_conditions(parts)


def parse_conditions(texts: Iterable[str]) -> Requirement:
    """Return conditions, each once.

    Raises:
        MalformedRequirement: one is malformed.
    """
    found: dict[Condition, None] = {}
    for text in texts:
        match = _CONDITION.fullmatch(text.strip(" \t"))
        if match is None:
            raise MalformedRequirement(f"the condition {text.strip()[:60]!a} is malformed; {GRAMMAR}")
        operator, amount, label = match.groups()
        found[Condition(label or "", operator or "", amount or "")] = None
    return tuple(found)


def joined(requirement: Requirement) -> str:
    """Return the text of a requirement; empty if it has no condition."""
    return ",".join(map(str, requirement))


def is_met(requirement: Requirement, labels: frozenset[str], vram: int | None) -> bool | None:
    """Return True if a backend meets all conditions, False if one is not met; None if that is not known.

    Args:
        requirement: the conditions.
        labels: the labels of the backend.
        vram: the bytes of its largest GPU, 0 if it has none; None if they are not known.
    """
    met = [condition.is_met(labels, vram) for condition in requirement]
    if False in met:
        return False
    return None if None in met else True
