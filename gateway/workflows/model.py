"""Parameters of a named workflow, as plain values. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.comfy.true_types import is_link, unwrapped

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_PARAMETERS, MAX_TARGETS, MAX_CHOICES, MAX_DESCRIPTION = 100, 50, 1_000, 500
# Fields of a run's body that are those of POST /gateway/run, so that no parameter has their names.
RESERVED = (
    "prompt_id",
    "client_id",
    "extra_data",
    "front",
    "number",
    "partial_execution_targets",
    "cancel_on_disconnect",
)
# Characters of a value that an error repeats.
MAX_SHOWN = 100


class ParameterType(StrEnum):
    """Type of a parameter's values. CHOICE: one of a list. IMAGE: an upload's name, or an asset."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    CHOICE = "choice"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Target:
    """An input of a graph that a parameter sets."""

    node_id: str
    input_name: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: the inputs that it sets, and the values that it takes.

    `default` None: a run without a value keeps the graph's own. `is_random`: such a run gets a random number.
    `choices` may be empty, because a backend knows them.
    """

    name: str
    targets: tuple[Target, ...]
    type: ParameterType
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    choices: tuple[Any, ...] = ()
    default: Any = None
    is_required: bool = False
    is_random: bool = False

    def shown(self) -> dict[str, Any]:
        """Return the parameter as JSON has it. `parameter_of` reads it."""
        shown: dict[str, Any] = {
            "targets": [{"node": each.node_id, "input": each.input_name} for each in self.targets],
            "type": str(self.type),
        }
        more = {
            "description": self.description or None,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "max_length": self.max_length,
            "choices": list(self.choices) or None,
            "default": self.default,
            "required": self.is_required or None,
            "random": self.is_random or None,
        }
        return shown | {name: value for name, value in more.items() if value is not None}


def parameter_of(name: str, shown: Mapping[str, Any]) -> Parameter:
    """Return a parameter from the JSON that `Parameter.shown` returned.

    Raises:
        LookupError, TypeError, ValueError: it is damaged.
    """
    return Parameter(
        name,
        tuple(Target(str(each["node"]), str(each["input"])) for each in shown["targets"]),
        ParameterType(shown["type"]),
        str(shown.get("description", "")),
        shown.get("minimum"),
        shown.get("maximum"),
        shown.get("max_length"),
        tuple(shown.get("choices", ())),
        shown.get("default"),
        bool(shown.get("required")),
        bool(shown.get("random")),
    )


def inputs_of(graph: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """Return the inputs of a node; none if there is no such node, or if it is malformed."""
    node = graph.get(node_id)
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def class_of(graph: Mapping[str, Any], node_id: str) -> str:
    """Return the class of a node; an empty text if there is no such node, or if it is malformed."""
    node = graph.get(node_id)
    class_type = node.get("class_type") if isinstance(node, dict) else None
    return class_type if isinstance(class_type, str) else ""


def title_of(graph: Mapping[str, Any], node_id: str) -> str:
    """Return the title that a node has in the web UI; an empty text if there is none."""
    node = graph.get(node_id)
    meta = node.get("_meta") if isinstance(node, dict) else None
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else ""


def literal_of(graph: Mapping[str, Any], target: Target) -> Any:
    """Return the value that a graph has at an input; None if that is a link, or if there is none."""
    value = unwrapped(inputs_of(graph, target.node_id).get(target.input_name))
    return None if is_link(value) or isinstance(value, (list, dict)) else value
