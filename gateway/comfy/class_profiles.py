"""Profiles of node classes: what may be put into each input, and the type of each output. Pure.

A profile is made from a class's entry in /object_info (server.py, node_info) and the review of stock classes. Dynamic
inputs are laid out as ComfyUI does (comfy_api/latest/_io.py, Autogrow, DynamicCombo and DynamicSlot).
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.comfy.file_refs import MODELS_3D
from gateway.comfy.node_review import Kind, Review, kind_of, pack_of

NUMERIC = frozenset({"INT", "FLOAT", "BOOLEAN"})
# A value of one of these types may be a name.
TEXTUAL = frozenset({"STRING", "COMBO"})
# Any type: nobody can say which.
ANY_TYPE = "*"
MATCH_TYPE = "COMFY_MATCHTYPE_V3"
_AUTOGROW, _DYNAMIC_COMBO, _DYNAMIC_SLOT = "COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"
_DYNAMIC = (_AUTOGROW, _DYNAMIC_COMBO, _DYNAMIC_SLOT)
# Values of these types may hold texts of the prompt's sender: widgets make them, or nodes of such texts.
DATA_TYPES = frozenset(
    "ARRAY BOUNDING_BOX BOUNDING_BOXES COLOR COLORS COMPOSITOR CURVE DICT FLOATS HISTOGRAM IMAGECOMPARE LAYERS "
    "LOAD_3D LOAD3D_CAMERA LOAD3D_MODEL_INFO AUDIO_RECORD WEBCAM JSON".split()
)
# An input for objects takes none of these for another.
MAY_HOLD_TEXT = TEXTUAL | DATA_TYPES | {ANY_TYPE}
# Hidden inputs that hold texts of the prompt's sender (execution.py, get_input_data).
_REVEALING_HIDDEN = frozenset({"PROMPT", "DYNPROMPT", "EXTRA_PNGINFO"})
_UPLOAD_FLAGS = ("image_upload", "video_upload", "audio_upload", "file_upload", "image_folder", "remote")
_MEDIA = ("image", "video", "audio")
_MEDIA_SUFFIXES = (*MODELS_3D, ".latent", ".exr", ".hdr")
# Whose a named file is, is another question (jobs/files/inputs.py).
_TAKE_SCALARS = frozenset({Kind.TEXT, Kind.ANY, Kind.DATA, Kind.FILE, Kind.FILES})
_SCALARS: frozenset[type] = frozenset({str, int, float, bool, type(None)})
_NUMBERS: frozenset[type] = frozenset({int, float, bool})
# The value decides where below output/ the class writes.
_STEERING = frozenset({Kind.OUTPUT_PREFIX, Kind.MODEL_PREFIX, Kind.UNCHECKED_FOLDER})
_NAMING = _STEERING | {Kind.UNCHECKED_PREFIX, Kind.MODEL}
# Classes that nobody has reviewed call such an input so, if they use get_save_image_path (folder_paths.py).
_PREFIX = "filename_prefix"
_USUAL_PREFIX = "ComfyUI"
# Dynamic inputs inside each other: ComfyUI's own go two deep.
_MAX_DEPTH = 8
_MAX_INPUTS = 2_000

# What must hold in a node for a member of a dynamic input to be there: the input's name and the option that it must
# have; None where any value will do.
Conditions = tuple[tuple[str, str | None], ...]
# An input's name and declaration, its conditions, and True if a node may leave it out.
_Laid = tuple[str, list[Any], Conditions, bool]


@dataclass(frozen=True, slots=True)
class InputProfile:
    """One input.

    Attributes:
        types: its declared types, as /object_info names them; COMBO for a list.
        template: the template that a MatchType input shares with outputs; empty for any other.
        choices: the list of a class that nobody has reviewed; its other inputs have none.
        takes_scalars: True if any text, number, boolean or null may be given as it is.
        takes_links: False for the name of a group of members (Autogrow) or of an option (DynamicCombo). ComfyUI passes
            a link there on, and validates nothing behind it.
        present: for a member that is not always there, the conditions of which one must hold; empty for any other.
        default: for an input in `ClassProfile.savers`, the text that it has if a node leaves it out; None if ComfyUI
            refuses such a node.
    """

    kind: Kind
    types: frozenset[str]
    template: str = ""
    choices: frozenset[Any] = frozenset()
    takes_scalars: bool = False
    takes_links: bool = True
    present: tuple[Conditions, ...] = ()
    default: str | None = None

    def is_in(self, inputs: Mapping[str, Any]) -> bool:
        """Return True if a node with these inputs has this one, by ComfyUI's rules (comfy_api/latest/_io.py)."""
        return not self.present or any(
            all(name in inputs and (key is None or inputs[name] == key) for name, key in conditions)
            for conditions in self.present
        )


@dataclass(frozen=True, slots=True)
class ClassProfile:
    """One node class on one backend.

    Attributes:
        inputs: by name, the members of dynamic inputs (``values.a``) among them. Hidden inputs are none.
        outputs: the declared types of each output.
        passes: for each output, the inputs whose values it may hand on.
        unreviewed: why the class has to be trusted, as names of inputs; empty for a class that is reviewed or harmless.
        formulas: the inputs that are evaluated as Python, and formats: parsing them takes a thousand times longer than
            a look at a number.
        hears_id: True if a node of the class is told its id, which the prompt's sender chooses.
        needs_look: True if more than a node's inputs decides whether the class may run.
        plain: for each input that may be given any text or number as it is, the types of these in Python.
        names: the inputs that take a prefix or the name of a model.
        savers: the inputs whose value decides where below output/ the class writes.
        saves_models: True if what the class saves may be meant for the folders of models.
        own_types: the inputs that need nothing of a link but an output of their own types, with these types.
        own_outputs: the types of the outputs that hand on nothing that the node was given, by slot.
    """

    name: str
    pack: str
    is_reviewed: bool
    inputs: Mapping[str, InputProfile]
    outputs: tuple[frozenset[str], ...]
    passes: tuple[tuple[str, ...], ...]
    unreviewed: tuple[str, ...]
    formulas: tuple[str, ...] = ()
    hears_id: bool = False
    # Asked for each input of each prompt, so they are made once.
    needs_look: bool = field(init=False)
    plain: Mapping[str, frozenset[type]] = field(init=False)
    names: frozenset[str] = field(init=False)
    savers: tuple[str, ...] = field(init=False)
    saves_models: bool = field(init=False)
    own_types: Mapping[str, frozenset[str]] = field(init=False)
    own_outputs: Mapping[int, frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        needs_look = self.formulas or self.unreviewed or (self.hears_id and not self.is_reviewed)
        object.__setattr__(self, "needs_look", bool(needs_look))
        plain = {name: _SCALARS if each.takes_scalars else _NUMBERS for name, each in self.inputs.items()}
        kinds = {name: each.kind for name, each in self.inputs.items()}
        plain = {name: types for name, types in plain.items() if types is _SCALARS or kinds[name] is Kind.COUNT}
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "names", frozenset(name for name, kind in kinds.items() if kind in _NAMING))
        savers = tuple(name for name, each in self.inputs.items() if _is_saver(name, each, self.is_reviewed))
        object.__setattr__(self, "savers", savers)
        object.__setattr__(self, "saves_models", any(kinds[name] is Kind.MODEL_PREFIX for name in savers))
        own_types = {
            name: each.types
            for name, each in self.inputs.items()
            if each.kind is Kind.OBJECT and each.takes_links and not each.present
        }
        object.__setattr__(self, "own_types", own_types)
        own_outputs = {
            slot: types
            for slot, (types, passed) in enumerate(zip(self.outputs, self.passes, strict=True))
            if types and not passed and types.isdisjoint((ANY_TYPE, MATCH_TYPE))
        }
        object.__setattr__(self, "own_outputs", own_outputs)

    @property
    def needs_trust(self) -> bool:
        """Return True if an isolated tenant may use the class only with the operator's word."""
        return bool(self.unreviewed)


def profile_of(name: str, description: Mapping[str, Any], review: Review) -> ClassProfile:
    """Return the profile of a class. `description` is well-formed (`gateway.comfy.object_info`)."""
    module = str(description.get("python_module") or "")
    reviewed = review.inputs(name, module)
    parts = description.get("input") or {}
    inputs: dict[str, InputProfile] = {}
    for input_name, spec, conditions, is_optional in _laid_out(parts):
        made = replace(
            _input_profile(input_name, spec, reviewed),
            takes_links=spec[0] not in (_AUTOGROW, _DYNAMIC_COMBO),
            present=(conditions,) if conditions else (),
        )
        if is_optional and _is_saver(input_name, made, reviewed is not None):
            made = replace(made, default=_default(spec))
        known = inputs.get(input_name)
        # If two options of one DynamicCombo have an input of one name, nothing less than both must hold.
        inputs[input_name] = made if known is None or known == made else _either(known, made)
        if len(inputs) > _MAX_INPUTS:
            break
    # Some classes take an input that they do not declare (CustomCombo's index).
    for input_name, kind in (reviewed or {}).items():
        if input_name not in inputs and not input_name.endswith("*"):
            inputs[input_name] = InputProfile(kind, frozenset(), takes_links=False)
    hidden = parts.get("hidden") or {}
    unreviewed = [key for key, each in inputs.items() if each.kind is Kind.UNREVIEWED]
    if reviewed is None:
        unreviewed += [key for key, type_ in hidden.items() if not _REVEALING_HIDDEN.isdisjoint(_hidden_types(type_))]
        if len(inputs) > _MAX_INPUTS:
            unreviewed.append("…")
    outputs = tuple(_types(type_) for type_ in description.get("output") or ())
    passes = tuple(
        _passed(place, types, description.get("output_matchtypes"), inputs) for place, types in enumerate(outputs)
    )
    formulas = tuple(key for key, each in inputs.items() if each.kind in (Kind.EXPRESSION, Kind.FORMAT))
    return ClassProfile(
        name,
        pack_of(module),
        reviewed is not None,
        inputs,
        outputs,
        passes,
        tuple(unreviewed),
        formulas,
        hears_id=any("UNIQUE_ID" in _hidden_types(type_) for type_ in hidden.values()),
    )


def _laid_out(
    parts: Mapping[str, Any], prefix: str = "", conditions: Conditions = (), depth: int = 0
) -> Iterator[_Laid]:
    for part in ("required", "optional"):
        for name, spec in (parts.get(part) or {}).items():
            if isinstance(spec, (list, tuple)) and spec:
                yield from _members(prefix + name, list(spec), conditions, depth, is_optional=part == "optional")


def _members(name: str, spec: list[Any], conditions: Conditions, depth: int, *, is_optional: bool) -> Iterator[_Laid]:
    """Yield an input and, if it is dynamic, its members."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    yield name, spec, conditions, is_optional
    if spec[0] not in _DYNAMIC or depth >= _MAX_DEPTH:
        return
    if spec[0] == _AUTOGROW:
        yield from _autogrow(name, options.get("template"), conditions, depth)
    elif spec[0] == _DYNAMIC_COMBO:
        for option in options.get("options") or ():
            if isinstance(option, Mapping) and isinstance(option.get("inputs"), Mapping):
                key = option.get("key")
                chosen = (*conditions, (name, key if isinstance(key, str) else ""))
                yield from _laid_out(option["inputs"], f"{name}.", chosen, depth + 1)
    elif isinstance(options.get("inputs"), Mapping):
        yield from _laid_out(options["inputs"], f"{name}.", (*conditions, (name, None)), depth + 1)


def _autogrow(name: str, template: Any, conditions: Conditions, depth: int) -> Iterator[_Laid]:
    if not isinstance(template, Mapping) or not isinstance(template.get("input"), Mapping):
        return
    inner = next((spec for _, spec, _, _ in _laid_out(template["input"], depth=depth + 1)), None)
    names, prefix, maximum = template.get("names"), template.get("prefix"), template.get("max")
    if isinstance(prefix, str) and isinstance(maximum, int):
        names = [f"{prefix}{place}" for place in range(min(maximum, 100))]
    for member in names if isinstance(names, list) and inner is not None else ():
        assert inner is not None
        # A node without a member has one member less: nothing stands in for it.
        yield f"{name}.{member}", inner, conditions, False


def _input_profile(name: str, spec: list[Any], reviewed: Mapping[str, Kind] | None) -> InputProfile:
    types = _types(spec[0])
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    template = options.get("template") if spec[0] == MATCH_TYPE else None
    template_id = str(template.get("template_id", "")) if isinstance(template, Mapping) else ""
    kind = kind_of(reviewed, name) if reviewed is not None else None
    if kind is not None:
        return InputProfile(kind, types, template_id, takes_scalars=kind in _TAKE_SCALARS)
    if types <= NUMERIC and types:
        return InputProfile(Kind.COUNT, types)
    if spec[0] in _DYNAMIC:
        # Its members are judged one by one; of a DynamicCombo the value itself is a choice.
        return InputProfile(Kind.CHOICE, types, choices=frozenset(_keys(options)))
    if types == {"COMBO"}:
        return _choice_profile(spec, options, is_reviewed=reviewed is not None)
    unclear = TEXTUAL | {ANY_TYPE, MATCH_TYPE} | (DATA_TYPES if reviewed is None else frozenset())
    is_textual = types & unclear or not types
    return InputProfile(Kind.UNREVIEWED if is_textual else Kind.OBJECT, types, template_id)


def _choice_profile(spec: list[Any], options: Mapping[str, Any], *, is_reviewed: bool) -> InputProfile:
    types = frozenset({"COMBO"})
    if is_reviewed:
        return InputProfile(Kind.CHOICE, types, takes_scalars=True)
    listed = spec[0] if isinstance(spec[0], list) else options.get("options")
    choices = [each for each in listed if isinstance(each, (str, int, float))] if isinstance(listed, list) else []
    offers_files = any(options.get(flag) for flag in _UPLOAD_FLAGS) or any(map(_is_media, choices))
    kind = Kind.UNREVIEWED if offers_files or not isinstance(listed, list) else Kind.CHOICE
    return InputProfile(kind, types, choices=frozenset(choices))


def _is_saver(name: str, known: InputProfile, is_reviewed: bool) -> bool:
    """Return True if the value of an input decides where below output/ its class writes."""
    if is_reviewed:
        return known.kind in _STEERING
    return name.rpartition(".")[2] == _PREFIX and known.types == {"STRING"}


def _default(spec: list[Any]) -> str:
    default = spec[1].get("default") if len(spec) > 1 and isinstance(spec[1], Mapping) else None
    return default if isinstance(default, str) else _USUAL_PREFIX


def _keys(options: Mapping[str, Any]) -> Iterator[str]:
    for option in options.get("options") or ():
        if isinstance(option, Mapping) and isinstance(option.get("key"), str):
            yield option["key"]


def _is_media(choice: Any) -> bool:
    """Return True if a choice looks like a file that somebody made: a list of such reads a folder."""
    if not isinstance(choice, str) or "." not in choice[-8:]:
        return False
    kind = (mimetypes.guess_type(choice)[0] or "").partition("/")[0]
    return kind in _MEDIA or choice.lower().endswith(_MEDIA_SUFFIXES)


def _types(declared: Any) -> frozenset[str]:
    """Return the types that a declaration names: several are joined by commas (comfy_execution/validation.py)."""
    if isinstance(declared, list):
        return frozenset({"COMBO"})
    if not isinstance(declared, str):
        return frozenset({ANY_TYPE})
    return frozenset(part for each in declared.split(",") if (part := each.strip()))


def _either(one: InputProfile, other: InputProfile) -> InputProfile:
    if {one.kind, other.kind} == {Kind.COUNT, Kind.CHOICE}:
        kind = Kind.CHOICE
    else:
        kind = one.kind if one.kind is other.kind else Kind.UNREVIEWED
    takes_scalars = one.takes_scalars and other.takes_scalars
    return InputProfile(
        kind,
        one.types | other.types,
        one.template,
        one.choices & other.choices,
        takes_scalars,
        takes_links=one.takes_links and other.takes_links,
        # A member that is there whatever is chosen has no conditions.
        present=tuple(dict.fromkeys((*one.present, *other.present))) if one.present and other.present else (),
        default=one.default if one.default is not None else other.default,
    )


def _hidden_types(declared: Any) -> list[str]:
    """Return what a hidden input is: V1 classes give a text, V3 classes a list (comfy_api/latest/_io.py)."""
    return [part for part in (declared if isinstance(declared, list) else [declared]) if isinstance(part, str)]


def _passed(place: int, types: frozenset[str], templates: Any, inputs: Mapping[str, InputProfile]) -> tuple[str, ...]:
    """Return the inputs whose values an output may hand on.

    A MatchType output has the type of the inputs with its template. A number may be one of the node's own numbers, and
    what is linked to these is not always known.
    """
    if MATCH_TYPE in types:
        template = templates[place] if isinstance(templates, list) and place < len(templates) else None
        return tuple(key for key, each in inputs.items() if each.template and each.template == template)
    if types and types <= NUMERIC:
        return tuple(key for key, each in inputs.items() if each.kind in (Kind.COUNT, Kind.NUMBER))
    return ()
