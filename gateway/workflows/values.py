"""Values of a workflow's parameters: their checks, their JSON Schema, and the graph that they make. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec
from gateway.workflows.model import MAX_SHOWN, Parameter, ParameterType, inputs_of, literal_of

# JavaScript reads no larger integer exactly, and the answer tells the random number.
MAX_RANDOM = 2**53 - 1
# The type of an object that stands for an asset in a graph (`web/v2/references.py`).
ASSET = "core/ASSET"
# Parameters that one refusal names.
_MAX_TOLD = 20
_MAX_ASSET_ID = 200


@dataclass(frozen=True, slots=True)
class Wrong:
    """A value that a parameter does not take: the value as an error shows it, and the values that it takes."""

    given: str
    allowed: str


class BadValues(Exception):
    """Refusal of values, by the names of their parameters."""

    def __init__(self, wrong: Mapping[str, Wrong]) -> None:
        told = list(wrong.items())[:_MAX_TOLD]
        super().__init__("; ".join(f"'{name}': {each.given} was given; allowed: {each.allowed}" for name, each in told))
        self.wrong = dict(told)

    def shown(self) -> dict[str, dict[str, str]]:
        """Return the refusals as JSON has them."""
        return {name: {"given": each.given, "allowed": each.allowed} for name, each in self.wrong.items()}


def given_as(value: Any) -> str:
    """Return a value as an error shows it."""
    text = json_codec.dumps_exact(value).decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def allowed_by(parameter: Parameter) -> str:
    """Return the values that a parameter takes, in words."""
    if parameter.choices:
        shown = [given_as(each) for each in parameter.choices[:_MAX_TOLD]]
        return f"one of {', '.join(shown)}" + ("" if len(parameter.choices) <= _MAX_TOLD else ", …")
    match parameter.type:
        case ParameterType.STRING:
            most = "" if parameter.max_length is None else f" of at most {parameter.max_length} characters"
            return f"a string{most}"
        case ParameterType.INTEGER | ParameterType.NUMBER:
            return ("an integer" if parameter.type is ParameterType.INTEGER else "a number") + _bounds_of(parameter)
        case ParameterType.BOOLEAN:
            return "true or false"
        case ParameterType.CHOICE:
            return "one of the choices of the node's input, as a string or a number"
        case ParameterType.IMAGE:
            return 'the name of an upload, or {"id": …} of an asset'


def _bounds_of(parameter: Parameter) -> str:
    match parameter.minimum, parameter.maximum:
        case None, None:
            return ""
        case None, high:
            return f" of at most {high}"
        case low, None:
            return f" of at least {low}"
        case low, high:
            return f" from {low} to {high}"


def fits(parameter: Parameter, value: Any) -> bool:
    """Return True if a parameter takes a value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not (isinstance(value, int) or math.isfinite(value)):
        return False
    if parameter.choices:
        return any(type(each) is type(value) and each == value for each in parameter.choices)
    match parameter.type:
        case ParameterType.STRING:
            return isinstance(value, str) and (parameter.max_length is None or len(value) <= parameter.max_length)
        case ParameterType.INTEGER:
            return is_number and value == int(value) and _is_within(parameter, value)
        case ParameterType.NUMBER:
            return is_number and _is_within(parameter, value)
        case ParameterType.BOOLEAN:
            return isinstance(value, bool)
        case ParameterType.CHOICE:
            return isinstance(value, str) or is_number
        case ParameterType.IMAGE:
            return (isinstance(value, str) and value != "") or _asset_id(value) is not None


def _is_within(parameter: Parameter, value: float) -> bool:
    low, high = parameter.minimum, parameter.maximum
    return (low is None or value >= low) and (high is None or value <= high)


def _asset_id(value: Any) -> str | None:
    """Return the id in an object that stands for an asset; None if it is no such object."""
    if isinstance(value, dict) and value.get("__type") == ASSET:
        value = value.get("info")
    id_ = value.get("id") if isinstance(value, dict) else None
    return id_ if isinstance(id_, str) and 0 < len(id_) <= _MAX_ASSET_ID else None


def values_for(
    parameters: Iterable[Parameter], given: Mapping[str, Any], random_integer: Callable[[int, int], int]
) -> dict[str, Any]:
    """Return the value of each parameter that a run sets. A parameter that keeps the graph's value is not among them.

    Args:
        given: the values of the request. A null counts as none.
        random_integer: returns a number from its first argument to its second.

    Raises:
        BadValues: a value does not fit, one is missing, or there is no such parameter.
    """
    known = {each.name: each for each in parameters}
    told = f"the parameters {', '.join(known)[:1_000]}" if known else "no parameter at all"
    wrong = {str(name)[:MAX_SHOWN]: Wrong(given_as(value), told) for name, value in given.items() if name not in known}
    values: dict[str, Any] = {}
    for name, parameter in known.items():
        value = given.get(name)
        if value is None:
            if parameter.is_random:
                values[name] = random_integer(*_random_bounds(parameter))
            elif parameter.default is not None:
                values[name] = parameter.default
            elif parameter.is_required:
                wrong[name] = Wrong("nothing", allowed_by(parameter))
        elif fits(parameter, value):
            values[name] = _normal(parameter, value)
        else:
            wrong[name] = Wrong(given_as(value), allowed_by(parameter))
    if wrong:
        raise BadValues(wrong)
    return values


def _random_bounds(parameter: Parameter) -> tuple[int, int]:
    low = 0 if parameter.minimum is None else math.ceil(parameter.minimum)
    high = MAX_RANDOM if parameter.maximum is None else math.floor(parameter.maximum)
    return low, max(low, min(high, MAX_RANDOM))


def _normal(parameter: Parameter, value: Any) -> Any:
    """Return a value as a graph has it: 5.0 for an integer becomes 5, and an asset an object of the Comfy API v2."""
    if parameter.type is ParameterType.INTEGER and isinstance(value, float):
        return int(value)
    asset_id = _asset_id(value) if parameter.type is ParameterType.IMAGE else None
    return value if asset_id is None else {"__type": ASSET, "info": {"id": asset_id}}


def fill(graph: Mapping[str, Any], parameters: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Put values into the inputs of a graph, which is changed."""
    for parameter in parameters:
        if parameter.name in values:
            for target in parameter.targets:
                inputs_of(graph, target.node_id)[target.input_name] = values[parameter.name]


def schema_of(graph: Mapping[str, Any], parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the values that a run of a workflow takes."""
    parameters = list(parameters)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {each.name: _schema(graph, each) for each in parameters},
        "required": [each.name for each in parameters if each.is_required],
        "additionalProperties": False,
    }


def _schema(graph: Mapping[str, Any], parameter: Parameter) -> dict[str, Any]:
    default = parameter.default
    if default is None and not parameter.is_random:
        default = literal_of(graph, parameter.targets[0])
    more = {
        "description": parameter.description or None,
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "maxLength": parameter.max_length,
        "default": default,
    }
    return _kind(parameter) | {name: value for name, value in more.items() if value is not None}


def _kind(parameter: Parameter) -> dict[str, Any]:
    if parameter.choices:
        return {"enum": list(parameter.choices)}
    match parameter.type:
        case ParameterType.CHOICE:
            return {"type": ["string", "number"]}
        case ParameterType.IMAGE:
            asset = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
            return {"anyOf": [{"type": "string", "minLength": 1}, asset]}
    return {"type": str(parameter.type)}
