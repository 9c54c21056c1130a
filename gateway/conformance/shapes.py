"""The shape of a JSON value, compared with a wanted one. Pure.

A wanted shape is a JSON Schema of these words: ``type`` (a name or a list of names), ``properties`` and ``required``,
``additionalProperties`` (the shape of every value of an object whose keys are ids), ``items``, and ``prefixItems`` for
a list in which each place has its meaning. ``number`` is any number: clients in JavaScript know one kind only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = Mapping[str, Any]
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference that breaks a client. `path` is as in JSONPath; `where` is one for all members of a list or map."""

    path: str
    expected: str
    found: str
    where: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class Comparison:
    """Result of a comparison. `added` are the paths of keys that were not asked for, each kind once."""

    differences: list[Difference] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    alike: int = 0
    _seen: set[tuple[str, str, str]] = field(default_factory=set)

    def differ(self, place: Place, expected: str, found: str) -> None:
        """Note a difference. If other members of a list or map differ alike, only count them."""
        key = (place.where, expected, found)
        if key in self._seen:
            self.alike += 1
            return
        self._seen.add(key)
        self.differences.append(Difference(place.path, expected, found, place.where))

    def add(self, place: Place) -> None:
        """Note a key that was not asked for."""
        if place.where not in self.added:
            self.added.append(place.where)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a value. `where` has ``*`` for the members of lists and maps."""

    path: str = "$"
    where: str = "$"

    def key(self, name: str) -> Place:
        """Return the place of an object's key."""
        return Place(self.path + _step(name), self.where + _step(name))

    def member(self, name: str) -> Place:
        """Return the place of a value in an object whose keys are ids."""
        return Place(self.path + _step(name), f"{self.where}.*")

    def index(self, place: int) -> Place:
        """Return a place in a list in which each place has its meaning."""
        return Place(f"{self.path}[{place}]", f"{self.where}[{place}]")

    def item(self, place: int) -> Place:
        """Return the place of a list's item."""
        return Place(f"{self.path}[{place}]", f"{self.where}[*]")


def compare(shape: Shape, value: Any, place: Place | None = None, into: Comparison | None = None) -> Comparison:
    """Compare `value` with `shape`, and return the differences. They show found values by their type alone."""
    place, comparison = place or Place(), into if into is not None else Comparison()
    wanted, found = _types(shape), kind(value)
    if wanted and found not in wanted:
        comparison.differ(place, " or ".join(wanted), found)
    elif isinstance(value, dict):
        _compare_object(shape, value, place, comparison)
    elif isinstance(value, list):
        _compare_list(shape, value, place, comparison)
    return comparison


def _compare_object(shape: Shape, value: dict[str, Any], place: Place, comparison: Comparison) -> None:
    properties: Mapping[str, Shape] = shape.get("properties", {})
    for name in shape.get("required", ()):
        if name not in value:
            comparison.differ(
                place.key(name), " or ".join(_types(properties.get(name, {}))) or "a value", "no such key"
            )
    rest: Shape | None = shape.get("additionalProperties")
    for name, item in value.items():
        if name in properties:
            compare(properties[name], item, place.key(name), comparison)
        elif rest is not None:
            compare(rest, item, place.member(name), comparison)
        elif properties:
            comparison.add(place.key(name))


def _compare_list(shape: Shape, value: list[Any], place: Place, comparison: Comparison) -> None:
    places: Sequence[Shape] | None = shape.get("prefixItems")
    if places is not None:
        if len(value) != len(places):
            comparison.differ(place, f"{len(places)} items", f"{len(value)}")
        for number, (wanted, item) in enumerate(zip(places, value, strict=False)):
            compare(wanted, item, place.index(number), comparison)
    elif "items" in shape:
        for number, item in enumerate(value):
            compare(shape["items"], item, place.item(number), comparison)


def _types(shape: Shape) -> tuple[str, ...]:
    types: str | Iterable[str] = shape.get("type", ())
    return (types,) if isinstance(types, str) else tuple(types)


def kind(value: Any) -> str:
    """Return JSON's name for the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _step(name: str) -> str:
    return f".{name}" if _PLAIN_KEY.fullmatch(name) else f"[{name!r}]"
