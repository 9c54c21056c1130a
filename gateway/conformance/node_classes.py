"""Node classes of /object_info, compared with recorded ones. Pure.

Compared are the parts that a workflow needs to run again, and that a client reads to offer choices: inputs and their
types, outputs by their place, and if the class is an output. Choices, defaults, limits and texts are not compared:
they are a matter of the installation, and of taste.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.conformance.shapes import Comparison, Place, Shape, compare, kind

CHOICES = "a list of choices"
_SECTIONS = ("required", "optional")


def distilled(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compared parts of a class's description. Hidden inputs are ComfyUI's own to fill in."""
    inputs = description["input"]
    return {
        **{part: {name: type_of(spec) for name, spec in inputs.get(part, {}).items()} for part in _SECTIONS},
        "output": [CHOICES if isinstance(output, list) else output for output in description["output"]],
        "output_node": description["output_node"],
    }


def compare_class(wanted: Mapping[str, Any], common: Shape, name: str, found: Any, comparison: Comparison) -> None:
    """Compare a class with a `distilled` one.

    `common` is the shape that all descriptions have. The further comparison relies on it.
    """
    place = Place().member(name)
    before = len(comparison.differences)
    compare(common, found, place, comparison)
    if len(comparison.differences) > before:
        return
    for part in _SECTIONS:
        _compare_inputs(wanted[part], found["input"].get(part, {}), place.key("input").key(part), comparison)
    for name_ in found["input"].get("required", {}):
        if name_ not in wanted["required"]:
            section = place.key("input").key("required")
            comparison.differ(section.key(name_), "no such input", "one that older workflows do not give")
    _compare_outputs(wanted["output"], found["output"], place.key("output"), comparison)
    if found["output_node"] is not wanted["output_node"]:
        expected, is_now = (str(node).lower() for node in (wanted["output_node"], found["output_node"]))
        comparison.differ(place.key("output_node"), expected, is_now)


def _compare_inputs(
    wanted: Mapping[str, str], found: Mapping[str, Any], section: Place, comparison: Comparison
) -> None:
    for name, type_ in wanted.items():
        if name not in found:
            comparison.differ(section.key(name), type_, "no such key")
        elif not _takes(found_type := type_of(found[name]), type_):
            comparison.differ(section.key(name).index(0), type_, found_type)


def _compare_outputs(wanted: list[str], found: list[Any], place: Place, comparison: Comparison) -> None:
    """Compare outputs by their place, because links name it: more may follow, none may go or change."""
    for number, type_ in enumerate(wanted):
        if number >= len(found):
            comparison.differ(place.index(number), type_, "no such output")
        elif (found_type := _name(found[number])) != type_:
            comparison.differ(place.index(number), type_, found_type)


def type_of(spec: Any) -> str:
    """Return the type of an input: a name, `CHOICES`, or the JSON type of the value that stands there instead."""
    return _name(spec[0]) if isinstance(spec, list) and spec else kind(spec)


def _name(type_: Any) -> str:
    if isinstance(type_, str):
        return type_
    return CHOICES if isinstance(type_, list) else kind(type_)


def _takes(now: str, before: str) -> bool:
    """Return True if an input still takes its former type: ``IMAGE,MASK`` and ``*`` take an IMAGE as well."""
    return now == before or now == "*" or before in now.split(",")
