"""Node classes of /object_info, compared with recorded ones. Pure.

What is compared is what a workflow that ran before needs to run again, and what a client reads to offer choices: the
inputs and their types, outputs by their place, whether the class is an output. Choices, defaults, limits and texts are
not: they are a matter of the installation, and of taste.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.conformance.shapes import Comparison, Place, Shape, compare, kind

CHOICES = "a list of choices"
_SECTIONS = ("required", "optional")


def distilled(description: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared of a class's description. Hidden inputs are ComfyUI's own to fill in."""
    inputs = description["input"]
    return {
        **{part: {name: type_of(spec) for name, spec in inputs.get(part, {}).items()} for part in _SECTIONS},
        "output": [CHOICES if isinstance(output, list) else output for output in description["output"]],
        "output_node": description["output_node"],
    }


def compare_class(wanted: Mapping[str, Any], common: Shape, name: str, found: Any, comparison: Comparison) -> None:
    """Compare a class with a `distilled` one.

    `common` is the shape that all descriptions have; what follows it up relies on that.
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
    """Links name an output by its place: more may follow, none may go or change."""
    for number, type_ in enumerate(wanted):
        if number >= len(found):
            comparison.differ(place.index(number), type_, "no such output")
        elif (found_type := _name(found[number])) != type_:
            comparison.differ(place.index(number), type_, found_type)


def type_of(spec: Any) -> str:
    """The type of an input: a name, `CHOICES`, or what stands there instead."""
    return _name(spec[0]) if isinstance(spec, list) and spec else kind(spec)


def _name(type_: Any) -> str:
    if isinstance(type_, str):
        return type_
    return CHOICES if isinstance(type_, list) else kind(type_)


def _takes(now: str, before: str) -> bool:
    """Whether an input takes what it took before: ``IMAGE,MASK`` and ``*`` take an IMAGE as well."""
    return now == before or now == "*" or before in now.split(",")
