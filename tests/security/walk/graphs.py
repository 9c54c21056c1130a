"""Prompts that fill one input of one class with a variant, and the other inputs with what makes them valid. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.security.walk.attacks import Variant, node

# Nodes that make a type, where the search would find a slower one.
_PREFERRED = {
    "IMAGE": ("EmptyImage", 0),
    "MASK": ("SolidMask", 0),
    "LATENT": ("EmptyLatentImage", 0),
    "AUDIO": ("EmptyAudio", 0),
    "VIDEO": ("CreateVideo", 0),
    "STRING": ("PrimitiveString", 0),
    "INT": ("PrimitiveInt", 0),
    "FLOAT": ("PrimitiveFloat", 0),
    "BOOLEAN": ("PrimitiveBoolean", 0),
}
_SCALARS: Mapping[str, Any] = {"STRING": "x", "INT": 1, "FLOAT": 1.0, "BOOLEAN": True}
# Values of the web UI's own widgets.
_WIDGETS: Mapping[str, Any] = {
    "COLOR": "#102030",
    "COLORS": ["#102030"],
    "BOUNDING_BOX": {"x": 0, "y": 0, "width": 32, "height": 32},
    "BOUNDING_BOXES": {"__value__": []},
    "CURVE": {"__value__": [[0, 0], [1, 1]]},
    "IMAGECOMPARE": {},
    "COMPOSITOR": {},
    "LOAD3D_CAMERA": {},
    "HISTOGRAM": None,
}
_OBJECTS_ALIVE = ("IMAGE", "MASK", "LATENT", "AUDIO", "VIDEO")
_TEXTUAL = frozenset({"STRING", "COMBO", "*", "COMFY_MATCHTYPE_V3"})
_NUMERIC = frozenset({"INT", "FLOAT", "BOOLEAN"})
_AUTOGROW, _COMBO, _SLOT = "COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"
_SIDES = ("width", "height", "resolution", "size")
MAX_SHOWN = 4


class CannotFill(Exception):
    """A required input takes what no node here can make."""


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a class: members of dynamic inputs have names such as ``values.a``.

    Attributes:
        context: literals of other inputs that this one needs, such as the choice of a dynamic combo.
    """

    name: str
    type: str
    options: Mapping[str, Any]
    choices: tuple[Any, ...]
    is_required: bool
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def types(self) -> frozenset[str]:
        """Return the types of a union."""
        return frozenset(part.strip() for part in self.type.split(","))


def inputs_of(description: Mapping[str, Any]) -> list[Input]:
    """Return all inputs of a class, those of each choice of a dynamic combo included."""
    by_name: dict[str, Input] = {}
    for each in _inputs(description["input"], "", {}, True):
        by_name.setdefault(each.name, each)
    return list(by_name.values())


def _inputs(declared: Any, prefix: str, context: Mapping[str, Any], is_needed: bool) -> Iterator[Input]:
    for category in ("required", "optional"):
        for name, spec in (declared.get(category) or {}).items():
            is_required = is_needed and category == "required"
            yield from _input(f"{prefix}{name}", spec, context, is_required)


def _input(name: str, spec: Any, context: Mapping[str, Any], is_required: bool) -> Iterator[Input]:
    type_, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(type_, list):
        yield Input(name, "COMBO", options, tuple(type_), is_required, context)
    elif type_ == _AUTOGROW:
        template = options["template"]
        names = template.get("names") or [f"{template['prefix']}{n}" for n in range(template["max"])]
        for member in (template["input"].get("required") or template["input"].get("optional") or {}).values():
            for place, each in enumerate(names[: max(2, template["min"])]):
                yield from _input(f"{name}.{each}", member, context, is_required and place < max(1, template["min"]))
    elif type_ == _COMBO:
        keys = [option["key"] for option in options["options"]]
        yield Input(name, "COMBO", options, tuple(keys), is_required, context)
        for place, option in enumerate(options["options"]):
            chosen = {**context, name: option["key"]}
            yield from _inputs(option["inputs"], f"{name}.", chosen, is_required and place == 0)
    elif type_ == _SLOT:
        yield Input(name, options.get("slotType", "*"), options, (), is_required, context)
    else:
        yield Input(name, type_, options, tuple(options.get("options") or ()), is_required, context)


class Recipes:
    """Makes prompts for the classes of an /object_info.

    Args:
        own: names of the attacker's own files, by type of widget: WEBCAM, AUDIO_RECORD, LOAD_3D.
    """

    def __init__(self, object_info: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        self._info = object_info
        self._own = own
        self._inputs = {name: inputs_of(description) for name, description in object_info.items()}
        self.makers: dict[str, tuple[str, int]] = {
            type_: maker for type_, maker in _PREFERRED.items() if maker[0] in object_info
        }
        self._made = {part for d in object_info.values() for output in d["output"] for part in str(output).split(",")}
        self._find_makers()

    def classes(self) -> list[str]:
        """Return the classes' names, sorted."""
        return sorted(self._info)

    def inputs(self, class_type: str) -> list[Input]:
        """Return all inputs of a class."""
        return self._inputs[class_type]

    def takes_text(self, given: Input) -> bool:
        """Return True if an input may take a text: its type says so, or no node makes its type."""
        return bool(given.types & _TEXTUAL) or not given.types <= self._made | _NUMERIC

    def _find_makers(self) -> None:
        """Find for each type a class whose inputs can all be made, the shortest ways first."""
        left = [
            name
            for name, description in self._info.items()
            if not description.get("output_node") and not description.get("api_node") and not name.startswith("Test")
        ]
        while True:
            ready = [name for name in left if self.is_fillable(name)]
            if not ready:
                return
            left = [name for name in left if name not in ready]
            for name in ready:
                for slot, output in enumerate(self._info[name]["output"]):
                    for type_ in str(output).split(",") if isinstance(output, str) else ():
                        self.makers.setdefault(type_, (name, slot))

    def _can_make(self, given: Input) -> bool:
        if given.type == "COMBO":
            return bool(given.choices)
        known = set(_SCALARS) | set(_WIDGETS) | set(self._own) | set(self.makers) | {"*", "COMFY_MATCHTYPE_V3"}
        return bool(given.types & known) or "default" in given.options

    def prompt(self, class_type: str, attacked: str, variant: Variant) -> dict[str, Any]:
        """Return a prompt in which node "n" is of this class, with the attacked input filled with the variant.

        Raises:
            CannotFill: another input can't be filled.
        """
        prompt: dict[str, Any] = {key: copy.deepcopy(helper) for key, helper in variant.helpers.items()}
        target = node(class_type)
        prompt["n"] = target
        known = self._inputs[class_type]
        context = next((each.context for each in known if each.name == attacked), {})
        for each in known:
            if each.name == attacked or each.name in context:
                continue
            if each.is_required and all(context.get(k, v) == v for k, v in each.context.items()):
                target["inputs"][each.name] = self._value(prompt, each)
        target["inputs"] |= context
        if variant.objects:
            self._fill_members(prompt, target["inputs"], known, attacked, variant)
        target["inputs"][attacked] = copy.deepcopy(variant.value)
        self._show(prompt, class_type)
        return prompt

    def is_fillable(self, class_type: str) -> bool:
        """Return True if all that a class needs can be made."""
        return all(self._can_make(each) for each in self._inputs[class_type] if each.is_required)

    def can_fill(self, class_type: str, attacked: str) -> bool:
        """Return True if all other inputs of a class can be filled."""
        return all(
            self._can_make(each) for each in self._inputs[class_type] if each.is_required and each.name != attacked
        )

    def _fill_members(
        self, prompt: dict[str, Any], inputs: dict[str, Any], known: list[Input], attacked: str, variant: Variant
    ) -> None:
        """Link the first dynamic member to an object, through a node that makes it pass as any type."""
        first = next((each.name for each in known if each.name.endswith(".a") and each.name != attacked), None)
        if first is None:
            return
        made = self._link(prompt, variant.objects, 0)
        through, slot = {
            "ComfySwitchNode": (node("ComfySwitchNode", switch=True, on_true=made, on_false=made), 0),
            "CreateList": (node("CreateList", **{"inputs.input0": made}), 0),
            "CustomCombo": (node("CustomCombo", choice="x", index=made), 1),
        }[variant.through]
        prompt["s"] = through
        inputs[first] = ["s", slot]
        second = f"{first[:-1]}b"
        if "{b" in str(variant.value) and any(each.name == second for each in known):
            # A nested format spec is shown in the error of a text that can't take it.
            inputs[second] = "x"

    def _value(self, prompt: dict[str, Any], given: Input, depth: int = 0) -> Any:
        if given.type == "COMBO":
            if not given.choices:
                raise CannotFill(given.name)
            wanted = given.options.get("default", given.choices[0])
            choice = wanted if wanted in given.choices else given.choices[0]
            return {"__value__": [choice]} if given.options.get("multiselect") else choice
        for type_ in sorted(given.types):
            if type_ in self._own:
                return copy.deepcopy(self._own[type_])
        if given.types & set(_SCALARS) and not given.options.get("forceInput"):
            return _scalar(given)
        for type_ in (*_OBJECTS_ALIVE, *sorted(given.types)):
            if type_ in given.types and type_ in self.makers:
                return self._link(prompt, type_, depth)
        if given.types & {"*", "COMFY_MATCHTYPE_V3"}:
            return self._link(prompt, "IMAGE" if "IMAGE" in self.makers else "STRING", depth)
        for type_ in sorted(given.types & set(_WIDGETS)):
            return copy.deepcopy(_WIDGETS[type_])
        if "default" in given.options:
            return given.options["default"]
        raise CannotFill(given.name)

    def _link(self, prompt: dict[str, Any], type_: str, depth: int) -> list[Any]:
        if type_ not in self.makers or depth > 12:
            raise CannotFill(type_)
        class_type, slot = self.makers[type_]
        node_id = f"m-{class_type}"
        if node_id not in prompt:
            made = node(class_type)
            prompt[node_id] = made
            for each in self._inputs[class_type]:
                if each.is_required:
                    made["inputs"][each.name] = self._value(prompt, each, depth + 1)
        return [node_id, slot]

    def _show(self, prompt: dict[str, Any], class_type: str) -> None:
        """Attach nodes that show what the class makes."""
        outputs = self._info[class_type]["output"]
        for slot, output in enumerate(outputs[:MAX_SHOWN] if not self._info[class_type].get("output_node") else ()):
            link = ["n", slot]
            types = set(str(output).split(","))
            for place, shown in enumerate(self._viewers(types, link, slot)):
                prompt[f"o{slot}.{place}"] = shown

    def _viewers(self, types: set[str], link: list[Any], slot: int) -> Iterator[dict[str, Any]]:
        pictures = {"IMAGE": link}
        if "MASK" in types and "MaskToImage" in self._info:
            yield node("MaskToImage", mask=link)
            pictures["MASK"] = [f"o{slot}.0", 0]
        if "VIDEO" in types and "GetVideoComponents" in self._info:
            yield node("GetVideoComponents", video=link)
            pictures["VIDEO"] = [f"o{slot}.0", 0]
        shown = next((source for type_, source in pictures.items() if type_ in types), None)
        if shown is not None:
            yield node("SaveImage", images=shown, filename_prefix="bens")
            return
        if "SVG" in types and "SaveSVGNode" in self._info:
            yield node("SaveSVGNode", svg=link, filename_prefix="bens")
        if types & {"FILE_3D", "FILE_3D_GLB", "FILE_3D_OBJ"} and "Preview3D" in self._info:
            yield node("Preview3D", model_file=link)
        if "PreviewAny" in self._info:
            yield node("PreviewAny", source=link)


def _scalar(given: Input) -> Any:
    """Return a valid literal, and a small one: hundreds of thousands of prompts run on a CPU."""
    type_ = next(each for each in ("STRING", "INT", "FLOAT", "BOOLEAN") if each in given.types)
    options = given.options
    value = options.get("default", _SCALARS[type_])
    if type_ == "INT" and any(side in given.name.lower() for side in _SIDES) and isinstance(value, int) and value > 64:
        step = options.get("step") or 1
        value = max(options.get("min", 0), 64 // step * step or step)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = max(value, options.get("min", value))
    return "x" if value == "" else value


def helpers_known(variant: Variant, object_info: Mapping[str, Any]) -> bool:
    """Return True if the classes of a variant's helpers exist here."""
    classes = {helper["class_type"] for helper in variant.helpers.values()}
    return classes | ({variant.through} if variant.objects else set()) <= set(object_info)
