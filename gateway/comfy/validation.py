"""Validation of a prompt by ComfyUI's rules, from an object_info alone. Pure, and free of recursion.

The error types, their wording and their order are those of execution.py (validate_prompt, validate_inputs), type
matching that of comfy_execution/validation.py. Values are converted in place, as ComfyUI does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.comfy.errors import clipped, error_body

# Inputs that become others, by what is in them: only the backend knows which (comfy_api/latest/_io.py).
_DYNAMIC = ("COMFY_AUTOGROW", "COMFY_DYNAMIC")
_ANY_TYPES = ("*", "COMFY_MATCHTYPE_V3")
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_MANY_CHOICES = 20
# ComfyUI names each output that fails at each node that is wrong: of thousands that would be millions of names.
_MANY_FAILED = 100
# Characters of the names of outputs that are told at the nodes that are wrong.
_MANY_NAMES = 1_000_000
# And it names all of a cycle at each of its nodes. One that is longer than this it can't walk through itself.
_LONG_CYCLE = 200
_BAD_LINK = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
_NO_OUTPUTS = error_body("prompt_no_outputs", "Prompt has no outputs")["error"]

# For a node class, its custom check: the inputs it looks at (which are then exempt from the list and range checks),
# and a function from the node's inputs to (input, details) of each that is wrong.
CustomCheck = tuple[frozenset[str], Callable[[Mapping[str, Any]], list[tuple[str, str]]]]


@dataclass(frozen=True, slots=True)
class Validation:
    """The result: `outputs` are the nodes to execute; `node_errors` are errors of outputs that are left out."""

    valid: bool
    error: dict[str, Any] | None
    outputs: list[str]
    node_errors: dict[str, Any]

    def body(self) -> dict[str, Any]:
        """Return the body of ComfyUI's 400."""
        return {"error": self.error, "node_errors": self.node_errors}


@dataclass(slots=True)
class _Result:
    valid: bool
    errors: list[dict[str, Any]] = field(default_factory=list)


_Steps = Generator[str, _Result, _Result]


def validate_prompt(
    prompt: dict[str, Any],
    object_info: Mapping[str, Any],
    *,
    partial_execution_targets: list[str] | None = None,
    custom: Mapping[str, CustomCheck] | None = None,
    open_lists: Collection[str] = (),
) -> Validation:
    """Validate a prompt.

    `open_lists` are the node classes whose lists are not checked: a custom node may accept unlisted choices.

    Raises:
        AttributeError, TypeError: a node is not an object; ComfyUI answers that with a bare 500.
    """
    outputs = []
    for node_id, node in prompt.items():
        error = _missing_class(node_id, node, object_info)
        if error is not None:
            return Validation(False, error, [], {})
        if object_info[node["class_type"]].get("output_node") is True and (
            partial_execution_targets is None or node_id in partial_execution_targets
        ):
            outputs.append(node_id)
    if not outputs:
        return Validation(False, _NO_OUTPUTS, [], {})
    return _Validator(prompt, object_info, custom or {}, open_lists).run(outputs)


def _missing_class(node_id: str, node: Any, object_info: Mapping[str, Any]) -> dict[str, Any] | None:
    class_type = node.get("class_type")
    if class_type is not None and class_type in object_info:
        return None
    meta = node.get("_meta")
    # What is no object there makes ComfyUI fail with a bare 500; the answer is the same without it.
    title = meta.get("title", class_type) if isinstance(meta, dict) else class_type
    if "class_type" not in node:
        shown = title or f"ID #{node_id}"
        message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
    else:
        message = f"Node '{title}' not found. The custom node may not be installed."
    extra = {"node_id": node_id, "class_type": class_type, "node_title": title}
    error: dict[str, Any] = error_body("missing_node_type", message, f"Node ID '#{node_id}'", extra)["error"]
    return error


class _Validator:
    def __init__(
        self,
        prompt: dict[str, Any],
        object_info: Mapping[str, Any],
        custom: Mapping[str, CustomCheck],
        open_lists: Collection[str],
    ) -> None:
        self._prompt = prompt
        self._object_info = object_info
        self._custom = custom
        self._open_lists = open_lists
        self._validated: dict[str, _Result] = {}
        self._named = 0
        # The texts in lists of choices; each list lives as long as the object_info.
        self._choices: dict[int, frozenset[str]] = {}
        # A stack, in which any one is found at once.
        self._visiting: dict[str, None] = {}

    def run(self, outputs: list[str]) -> Validation:
        good: list[str] = []
        failed: list[_Result] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            try:
                result = self._walk(output)
            except Exception as error:  # noqa: BLE001
                # If a graph makes its validation raise, report that as the output's error, because ComfyUI does so
                # (execution.py, validate_prompt), with any exception.
                result = self._validated[output] = _Result(False, [_exception("exception_during_validation", error)])
            if result.valid:
                good.append(output)
                continue
            failed.append(result)
            if len(failed) <= _MANY_FAILED and self._named < _MANY_NAMES:
                self._report(output, node_errors)
        if good:
            return Validation(True, None, good, node_errors)
        details = "\n".join(f"{error['message']}: {error['details']}" for r in failed for error in r.errors)
        body = error_body("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
        return Validation(False, body["error"], [], node_errors)

    def _report(self, output: str, node_errors: dict[str, Any]) -> None:
        for node_id, result in self._validated.items():
            if result.valid or not result.errors:
                continue
            if node_id not in node_errors:
                class_type = self._prompt[node_id]["class_type"]
                node_errors[node_id] = {"errors": result.errors, "dependent_outputs": [], "class_type": class_type}
            node_errors[node_id]["dependent_outputs"].append(output)
            self._named += len(output)

    def _walk(self, output: str) -> _Result:
        """Depth first, with a stack of our own: a chain of thousands of nodes is a legal graph."""
        if output in self._validated:
            return self._validated[output]
        stack: list[tuple[str, _Steps]] = [(output, self._node(output))]
        answer: _Result | None = None
        failure: Exception | None = None
        while stack:
            node_id, steps = stack[-1]
            try:
                child = steps.throw(failure) if failure is not None else _advance(steps, answer)
            except StopIteration as stop:
                stack.pop()
                self._visiting.popitem()
                answer, failure = self._validated.setdefault(node_id, stop.value), None
                continue
            except Exception as raised:
                # If a node's check raises, raise it in the node above, because ComfyUI's recursion would; run() reports
                # it if no node does.
                stack.pop()
                self._visiting.popitem()
                if not stack:
                    raise
                answer, failure = None, raised
                continue
            answer, failure = self._known(child), None
            if answer is None:
                stack.append((child, self._node(child)))
        assert answer is not None
        return answer

    def _known(self, node_id: str) -> _Result | None:
        if node_id in self._validated:
            return self._validated[node_id]
        if node_id not in self._visiting:
            return None
        visiting = list(self._visiting)
        path = [*visiting[visiting.index(node_id) :], node_id]
        cycle = list(dict.fromkeys(path))
        shown = path if len(path) <= _LONG_CYCLE else [*path[:_LONG_CYCLE], path[-1]]
        details = clipped(" -> ".join(f"{n} ({self._prompt[n]['class_type']})" for n in shown))
        for place, n in enumerate(cycle):
            if place >= _LONG_CYCLE:
                self._validated[n] = _Result(False)
                continue
            extra = {"node_id": n, "cycle_nodes": cycle[:_LONG_CYCLE]}
            self._validated[n] = _Result(
                False, [_error("dependency_cycle", "Dependency cycle detected", details, extra)]
            )
        return self._validated[node_id]

    def _node(self, node_id: str) -> _Steps:
        """Validate one node; yields the nodes it is linked to."""
        self._visiting[node_id] = None
        node = self._prompt[node_id]
        inputs, info = node["inputs"], self._object_info[node["class_type"]]
        exempt, check = self._custom.get(node["class_type"], (frozenset[str](), None))
        is_open = node["class_type"] in self._open_lists
        errors: list[dict[str, Any]] = []
        valid = True
        for category in ("required", "optional"):
            for name, spec in (info["input"].get(category) or {}).items():
                if isinstance(spec[0], str) and spec[0].startswith(_DYNAMIC):
                    continue
                if name not in inputs:
                    if category == "required":
                        extra = {"input_name": name}
                        errors.append(_error("required_input_missing", "Required input is missing", name, extra))
                    continue
                value, type_ = inputs[name], spec[0]
                options = spec[1] if len(spec) > 1 else {}
                if isinstance(value, list):
                    error = self._bad_link(name, value, type_, options)
                    if error is not None:
                        errors.append(error)
                        continue
                    valid = (yield from self._follow(name, value, type_, options)) and valid
                elif (error := self._check_value(inputs, name, type_, options, name in exempt, is_open)) is not None:
                    errors.append(error)
        if check is not None:
            for name, details in check(inputs):
                message = "Custom validation failed for node"
                errors.append(_error("custom_validation_failed", message, details, {"input_name": name}))
        known = self._validated.get(node_id, _Result(True))
        result = _Result(
            known.valid and valid and not errors, known.errors + [e for e in errors if e not in known.errors]
        )
        self._validated[node_id] = result
        return result

    def _bad_link(self, name: str, value: list[Any], type_: Any, options: Any) -> dict[str, Any] | None:
        if len(value) != 2:
            extra = {"input_name": name, "input_config": [type_, options], "received_value": clipped(value)}
            return _error("bad_linked_input", _BAD_LINK, name, extra)
        # A tuple, as ComfyUI's RETURN_TYPES, because errors repeat its name.
        received = tuple(self._object_info[self._prompt[value[0]]["class_type"]]["output"])[value[1]]
        if _types_match(received, type_):
            return None
        extra = {
            "input_name": name,
            "input_config": [type_, options],
            "received_type": received,
            "linked_node": value,
        }
        details = f"{name}, received_type({received}) mismatch input_type({type_})"
        return _error("return_type_mismatch", "Return type mismatch between linked nodes", details, extra)

    def _check_value(
        self, inputs: Any, name: str, type_: Any, options: Any, exempt: bool, is_open: bool
    ) -> dict[str, Any] | None:
        value = inputs[name]
        try:
            if isinstance(value, dict) and "__value__" in value:
                inputs[name] = value = value["__value__"]
            if isinstance(type_, str) and type_ in _CONVERSIONS:
                inputs[name] = value = _CONVERSIONS[type_](value)
        except (TypeError, ValueError, OverflowError) as error:
            extra = {
                "input_name": name,
                "input_config": [type_, options],
                "received_value": clipped(value),
                "exception_message": clipped(str(error)),
            }
            message = f"Failed to convert an input value to a {type_} value"
            return _error("invalid_input_type", message, f"{name}, {clipped(value)}, {clipped(str(error))}", extra)
        if exempt:
            return None
        extra = {"input_name": name, "input_config": [type_, options], "received_value": clipped(value)}
        if "min" in options and value < options["min"]:
            return _error("value_smaller_than_min", f"Value {value} smaller than min of {options['min']}", name, extra)
        if "max" in options and value > options["max"]:
            return _error("value_bigger_than_max", f"Value {value} bigger than max of {options['max']}", name, extra)
        if not is_open and (isinstance(type_, list) or type_ == "COMBO"):
            return self._check_choice(name, value, type_, options, extra)
        return None

    def _check_choice(
        self, name: str, value: Any, type_: Any, options: Any, extra: dict[str, Any]
    ) -> dict[str, Any] | None:
        choices = type_ if isinstance(type_, list) else options.get("options", [])
        if options.get("multiselect", False) and isinstance(value, list):
            wrong = [item for item in value if not self._is_choice(item, choices)]
        else:
            wrong = [] if self._is_choice(value, choices) else [value]
        if not wrong:
            return None
        shown = str(choices)
        if len(choices) > _MANY_CHOICES:
            shown = f"(list of length {len(choices)})"
            extra["input_config"] = None
        details = f"{name}: {', '.join(repr(clipped(item)) for item in wrong)} not in {shown}"
        return _error("value_not_in_list", "Value not in list", details, extra)

    def _is_choice(self, value: Any, choices: Sequence[Any]) -> bool:
        """Return True if a list has a value. A long list is looked through once, for all nodes of a prompt."""
        if not isinstance(value, str) or len(choices) <= _MANY_CHOICES:
            return value in choices
        names = self._choices.get(id(choices))
        if names is None:
            names = self._choices[id(choices)] = frozenset(choice for choice in choices if isinstance(choice, str))
        return value in names

    def _follow(self, name: str, value: list[Any], type_: Any, options: Any) -> Generator[str, _Result, bool]:
        try:
            return (yield value[0]).valid
        except Exception as error:  # noqa: BLE001
            # If the check of a linked node raises, report that at the linked node, because ComfyUI does so
            # (execution.py, validate_inputs), with any exception.
            reason = _exception("exception_during_inner_validation", error)
            extra = reason["extra_info"]
            extra |= {"input_name": name, "input_config": [type_, options], "linked_node": value}
            self._validated[value[0]] = _Result(False, [reason])
            return False


def _advance(steps: _Steps, answer: _Result | None) -> str:
    return next(steps) if answer is None else steps.send(answer)


def _error(type_: str, message: str, details: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {"type": type_, "message": message, "details": details, "extra_info": extra}


def _exception(type_: str, error: Exception) -> dict[str, Any]:
    where = "inner node" if type_ == "exception_during_inner_validation" else "node"
    extra: dict[str, Any] = {"exception_type": type(error).__qualname__, "traceback": []}
    if where == "inner node":
        extra["exception_message"] = clipped(str(error))
    return _error(type_, f"Exception when validating {where}", clipped(str(error)), extra)


def _types_match(received: Any, wanted: Any) -> bool:
    """Return True if an output may be linked to an input: unions overlap, ``*`` fits all (validate_node_input)."""
    if received == wanted or received in _ANY_TYPES or wanted in _ANY_TYPES:
        return True
    if isinstance(received, list) and wanted == "COMBO":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    mine, theirs = ({part.strip() for part in types.split(",")} for types in (received, wanted))
    return "*" in mine or "*" in theirs or bool(mine & theirs)
