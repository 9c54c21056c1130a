"""Arguments of a node's calls: links, declared literals, members of dynamic inputs, lists (execution.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.comfy.true_types import is_link
from gateway.simulator.values import Result

Description = Mapping[str, Any]
_AUTOGROW = "COMFY_AUTOGROW_V3"
# Arguments that these classes' functions take, and do not declare. None: all.
_UNDECLARED: Mapping[str, frozenset[str] | None] = {
    "PreviewImage": frozenset({"filename_prefix"}),
    "WebcamCapture": None,
}


def expanded(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return /object_info with each dynamic input replaced by its possible members, such as ``values.a``.

    ComfyUI does the same before it validates (comfy_api/latest/_io.py, Autogrow).
    """
    return {name: {**description, "input": _expanded_input(description)} for name, description in info.items()}


def _expanded_input(description: Description) -> dict[str, dict[str, Any]]:
    members: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for category in ("required", "optional"):
        for name, spec in (description["input"].get(category) or {}).items():
            if spec[0] != _AUTOGROW:
                members[category][name] = spec
                continue
            template = spec[1]["template"]
            (member,) = template["input"]["required"].values()
            names = template.get("names") or [f"{template['prefix']}{n}" for n in range(template["max"])]
            for place, each in enumerate(names):
                members["required" if place < template["min"] else "optional"][f"{name}.{each}"] = member
    return members


def gather(node: Mapping[str, Any], description: Description, results: Mapping[str, Result]) -> dict[str, list[Any]]:
    """Return each input's values: a literal is one value, an output of a node a list of them.

    ComfyUI drops an undeclared literal, and passes an undeclared link on.

    Raises:
        TypeError: the class's function takes no such argument.
    """
    class_type = node["class_type"]
    declared = {name for category in _expanded_input(description).values() for name in category}
    taken = _UNDECLARED.get(class_type, frozenset())
    gathered: dict[str, list[Any]] = {}
    for name, value in node["inputs"].items():
        if is_link(value):
            outputs = results[value[0]].outputs
            gathered[name] = outputs[value[1]] if value[1] < len(outputs) else [None]
            is_hidden = name in description["input"].get("hidden", {})
            if name not in declared and not is_hidden and taken is not None and name not in taken:
                raise TypeError(f"{class_type}.execute() got an unexpected keyword argument '{name}'")
        elif name in declared:
            gathered[name] = [value]
    return gathered


def nested(arguments: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """Return arguments with the members of each dynamic input in an object of their own."""
    dynamic: dict[str, dict[str, Any]] = {
        name: {}
        for category in ("required", "optional")
        for name, spec in (description["input"].get(category) or {}).items()
        if spec[0] == _AUTOGROW
    }
    result: dict[str, Any] = dict(dynamic)
    for name, value in arguments.items():
        base, _, member = name.partition(".")
        if base in dynamic and member:
            result[base] = {**result[base], member: value}
        else:
            result[name] = value
    return result


def calls(gathered: Mapping[str, list[Any]], description: Description) -> list[dict[str, Any]]:
    """Return the arguments of each call: one a value, shorter lists repeat their last; a class may want the lists."""
    if description.get("is_input_list"):
        return [nested(gathered, description)]
    count = max((len(values) for values in gathered.values()), default=1)
    return [
        nested({name: values[min(n, len(values) - 1)] for name, values in gathered.items()}, description)
        for n in range(count)
    ]


def merged(results: list[Result], description: Description) -> Result:
    """Return one result of several calls: of each output, and of each list that the UI is shown, all values."""
    width = max((len(result.outputs) for result in results), default=len(description["output"]))
    is_list = [*description.get("output_is_list", ()), *[False] * width]
    outputs: tuple[list[Any], ...] = tuple([] for _ in range(width))
    ui: dict[str, Any] | None = None
    for result in results:
        for values, value, is_listed in zip(outputs, result.outputs, is_list, strict=False):
            values.extend(value if is_listed else [value])
        if ui is None or result.ui is None:
            ui = result.ui if ui is None else ui
        else:
            ui = {key: [*ui.get(key, ()), *values] for key, values in result.ui.items()}
    return Result(outputs, ui)


def shown(value: Any) -> Any:
    """Return a value as ``current_inputs`` of an error shows it (execution.py, format_value)."""
    return value if value is None or isinstance(value, (int, float, bool, str)) else str(value)
