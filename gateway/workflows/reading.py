"""The parameters that an owner gives with a graph: their checks, and what the nodes' descriptions add. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from gateway.workflows.model import (
    MAX_CHOICES,
    MAX_DESCRIPTION,
    MAX_PARAMETERS,
    MAX_TARGETS,
    PARAMETER_NAME,
    RESERVED,
    Parameter,
    ParameterType,
    Target,
    class_of,
    inputs_of,
    literal_of,
    title_of,
)
from gateway.workflows.values import allowed_by, fits, given_as

# Returns a node class' description, as /object_info has it; None for an unknown class.
Describe = Callable[[str], Mapping[str, Any] | None]
# Fields of a parameter that an owner gives.
FIELDS = (
    "node",
    "title",
    "class_type",
    "input",
    "targets",
    "type",
    "description",
    "minimum",
    "maximum",
    "max_length",
    "choices",
    "default",
    "required",
    "random",
)
_PLACE = ("node", "title", "class_type", "input")
_SELECTORS = _PLACE[:3]
# Types of a parameter by the type that a node's description tells.
_BY_SPEC = {
    "INT": ParameterType.INTEGER,
    "FLOAT": ParameterType.NUMBER,
    "STRING": ParameterType.STRING,
    "BOOLEAN": ParameterType.BOOLEAN,
    "COMBO": ParameterType.CHOICE,
}
_NUMBERS = (ParameterType.INTEGER, ParameterType.NUMBER)
# Options of a choice that is a file of the caller's (nodes.py, LoadImage; comfy_extras/nodes_video.py, LoadVideo).
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload", "file_upload")
# Nodes of a title or a class that an error names.
_MAX_NAMED = 10


class BadParameter(Exception):
    """Refusal of a parameter's definition. The text names the parameter, what was given and what is allowed."""

    def __init__(self, name: str, what: str, given: Any, allowed: str) -> None:
        place = f"parameters.{name[:64]}{'.' if what else ''}{what}"
        super().__init__(f"'{place}': {given_as(given)} was given; allowed: {allowed}")
        self.name = name


def read_parameters(graph: Mapping[str, Any], given: Any, describe: Describe) -> tuple[Parameter, ...]:
    """Return the parameters that an owner gives with a graph.

    Raises:
        BadParameter: one is malformed, or does not fit the graph.
    """
    if not isinstance(given, dict) or len(given) > MAX_PARAMETERS:
        shown = given if not isinstance(given, (dict, list)) else f"{len(given)} items"
        raise BadParameter("", "", shown, f"an object with at most {MAX_PARAMETERS} parameters by their names")
    nodes = _Nodes(graph)
    return tuple(_read(nodes, str(name), spec, describe) for name, spec in given.items())


class _Nodes:
    """The nodes of a graph, by their ids, their titles and their classes, because many parameters name some."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.graph = graph
        self.by: dict[str, dict[str, list[str]]] = {what: {} for what in _SELECTORS}
        for node_id in graph:
            for what, told in zip(
                _SELECTORS, (node_id, title_of(graph, node_id), class_of(graph, node_id)), strict=True
            ):
                if told:
                    self.by[what].setdefault(told, []).append(node_id)


def _read(nodes: _Nodes, name: str, spec: Any, describe: Describe) -> Parameter:
    graph = nodes.graph
    if PARAMETER_NAME.fullmatch(name) is None or name in RESERVED:
        allowed = "a name of letters, digits and _, at most 64, the first no digit; none of " + ", ".join(RESERVED)
        raise BadParameter(name, "", name, allowed)
    if not isinstance(spec, dict):
        raise BadParameter(name, "", spec, "an object with the parameter's place and type")
    unknown = [each for each in spec if each not in FIELDS]
    if unknown:
        raise BadParameter(name, "", unknown, f"the fields {', '.join(FIELDS)}")
    targets = _targets(nodes, name, spec)
    found = found_type(graph, targets[0], describe)
    type_ = _type(name, spec, found)
    is_number = type_ in _NUMBERS
    own = (found[1], found[2]) if found is not None and found[0] is type_ else (None, None)
    low = _number(name, spec, "minimum", own[0], is_number=is_number)
    high = _number(name, spec, "maximum", own[1], is_number=is_number)
    if low is not None and high is not None and low > high:
        raise BadParameter(name, "minimum", low, f"at most the maximum, {high}")
    is_random = _flag(name, spec, "random")
    if is_random and type_ is not ParameterType.INTEGER:
        raise BadParameter(name, "random", True, "false, because the parameter is no integer")
    default, is_required = spec.get("default"), _flag(name, spec, "required")
    if is_required and (is_random or default is not None):
        raise BadParameter(name, "required", True, "false, because there is a default, or a random number")
    parameter = Parameter(
        name,
        targets,
        type_,
        _description(name, spec),
        low,
        high,
        _length(name, spec, type_),
        _choices(name, spec, type_),
        default,
        is_required or (default is None and not is_random and literal_of(graph, targets[0]) is None),
        is_random,
    )
    if default is not None and not fits(parameter, default):
        raise BadParameter(name, "default", default, allowed_by(parameter))
    return parameter


def _targets(nodes: _Nodes, name: str, spec: Mapping[str, Any]) -> tuple[Target, ...]:
    several = spec.get("targets")
    if several is None:
        return (_target(nodes, name, "", spec),)
    if any(each in spec for each in _PLACE):
        raise BadParameter(name, "targets", several, "either targets, or a place of its own")
    if not isinstance(several, list) or not 1 <= len(several) <= MAX_TARGETS:
        raise BadParameter(name, "targets", several, f"a list of 1 to {MAX_TARGETS} places")
    found = []
    for place, each in enumerate(several):
        if not isinstance(each, dict) or not each.keys() <= set(_PLACE):
            raise BadParameter(name, f"targets[{place}]", each, f"an object with input, and one of {_SELECTORS}")
        found.append(_target(nodes, name, f"targets[{place}].", each))
    return tuple(dict.fromkeys(found))


def _target(nodes: _Nodes, name: str, prefix: str, spec: Mapping[str, Any]) -> Target:
    given = [each for each in _SELECTORS if each in spec]
    if len(given) != 1:
        raise BadParameter(name, f"{prefix}node", given, f"one of {', '.join(_SELECTORS)}")
    what = given[0]
    wanted = str(spec[what]) if what == "node" and type(spec[what]) is int else spec[what]
    found = nodes.by[what].get(wanted, []) if isinstance(wanted, str) else []
    if len(found) != 1:
        allowed = f"the {what} of one node; it fits {_listed(found)}" if found else f"one of {_listed(nodes.by[what])}"
        raise BadParameter(name, f"{prefix}{what}", spec[what], allowed)
    input_name, there = spec.get("input"), inputs_of(nodes.graph, found[0])
    if not isinstance(input_name, str) or input_name not in there:
        raise BadParameter(name, f"{prefix}input", input_name, f"an input of node {found[0]}: {_listed(there)}")
    return Target(found[0], input_name)


def _listed(names: Iterable[str]) -> str:
    first = [each[:64] for each in islice(names, _MAX_NAMED + 1)]
    return ", ".join(first[:_MAX_NAMED]) + (", …" if len(first) > _MAX_NAMED else "") or "none"


Found = tuple[ParameterType, float | None, float | None]


def found_type(graph: Mapping[str, Any], target: Target, describe: Describe) -> Found | None:
    """Return the type of an input, and its bounds: by its class' description, else by its value; None if both fail."""
    found = _described(describe(class_of(graph, target.node_id)), target.input_name)
    return found or _of_value(literal_of(graph, target))


def _described(description: Mapping[str, Any] | None, input_name: str) -> Found | None:
    parts = (description or {}).get("input") or {}
    spec = next(
        (part[input_name] for name in ("required", "optional") if input_name in (part := parts.get(name) or {})), None
    )
    if not isinstance(spec, list) or not spec:
        return None
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    type_ = ParameterType.CHOICE if isinstance(spec[0], list) else _BY_SPEC.get(spec[0])
    if type_ is ParameterType.CHOICE and any(options.get(each) for each in _UPLOADS):
        type_ = ParameterType.IMAGE
    if type_ not in _NUMBERS:
        return None if type_ is None else (type_, None, None)
    low, high = _finite(options.get("min")), _finite(options.get("max"))
    return (type_, low, high) if low is None or high is None or low <= high else (type_, None, None)


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # No integer beyond 64 bits, because JSON readers take none. Compared first, because it may be beyond any float.
    return value if is_number and -(2**63) <= value < 2**64 and math.isfinite(value) else None


def _of_value(value: Any) -> Found | None:
    kinds: tuple[tuple[type, ParameterType], ...] = (
        (bool, ParameterType.BOOLEAN),
        (int, ParameterType.INTEGER),
        (float, ParameterType.NUMBER),
        (str, ParameterType.STRING),
    )
    return next(((type_, None, None) for kind, type_ in kinds if isinstance(value, kind)), None)


def _type(name: str, spec: Mapping[str, Any], found: Found | None) -> ParameterType:
    given = spec.get("type")
    if given is None and found is not None:
        return ParameterType.CHOICE if spec.get("choices") is not None else found[0]
    if not isinstance(given, str) or given not in list(ParameterType):
        raise BadParameter(name, "type", given, f"one of {', '.join(ParameterType)}")
    return ParameterType(given)


def _number(name: str, spec: Mapping[str, Any], what: str, otherwise: float | None, *, is_number: bool) -> float | None:
    given = spec.get(what)
    if given is None:
        return otherwise
    if not is_number or _finite(given) is None:
        raise BadParameter(name, what, given, "a number, if the parameter is an integer or a number")
    return float(given) if isinstance(given, float) else int(given)


def _length(name: str, spec: Mapping[str, Any], type_: ParameterType) -> int | None:
    given = spec.get("max_length")
    if given is None:
        return None
    if type_ is not ParameterType.STRING or not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise BadParameter(name, "max_length", given, "an integer of at least 1, if the parameter is a string")
    return given


def _choices(name: str, spec: Mapping[str, Any], type_: ParameterType) -> tuple[Any, ...]:
    given = spec.get("choices")
    if given is None:
        return ()
    is_list = isinstance(given, list) and 1 <= len(given) <= MAX_CHOICES
    if type_ is not ParameterType.CHOICE or not is_list or not all(_is_choice(each) for each in given):
        raise BadParameter(name, "choices", given, f"a list of 1 to {MAX_CHOICES} strings and numbers, for a choice")
    return tuple(given)


def _is_choice(value: Any) -> bool:
    return isinstance(value, str) or _finite(value) is not None


def _description(name: str, spec: Mapping[str, Any]) -> str:
    given = spec.get("description")
    if given is None:
        return ""
    if not isinstance(given, str) or len(given) > MAX_DESCRIPTION:
        raise BadParameter(name, "description", given, f"a string of at most {MAX_DESCRIPTION} characters")
    return given


def _flag(name: str, spec: Mapping[str, Any], what: str) -> bool:
    given = spec.get(what)
    if given is None:
        return False
    if not isinstance(given, bool):
        raise BadParameter(name, what, given, "true or false")
    return given
