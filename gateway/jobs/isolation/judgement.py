"""Judge if a prompt of an isolated tenant may run on a backend that strangers share. Pure.

The review of stock classes and the operator's trust decide on classes. The kind of an input decides on its value. An
input that can't be judged is refused. `gateway.jobs.files.inputs` checks the owner of a named file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gateway.comfy.class_profiles import ANY_TYPE, MAY_HOLD_TEXT, NUMERIC, TEXTUAL, ClassProfile, InputProfile
from gateway.comfy.graph import texts
from gateway.comfy.name_checks import BARE_NAME, wrong_with_file_part, wrong_with_model_name, wrong_with_prefix
from gateway.comfy.node_review import OPENING, Kind
from gateway.comfy.subgraph import MAX_TEXT, Link, OpenedNode
from gateway.comfy.template_checks import wrong_with_expression, wrong_with_format
from gateway.comfy.true_types import BROKEN, TRUSTED_ANY, TrueTypes, is_link, is_plain_link, unwrapped
from gateway.jobs.isolation.secret_folders import UNCHANGED, Steering

# Maximum number of inputs that a refusal names, because a prompt may have a million.
MAX_REFUSALS = 100
# Maximum characters of all formulas of a prompt together, because judging blocks the event loop. Formats may have ten
# times as many.
MAX_FORMULAS = 5_000
# If a link may carry at most this many types, they are judged once and remembered.
MAX_REMEMBERED_TYPES = 8
_MALFORMED = "a link must be [node id, slot], the slot an integer from 0 on"
SETTING = "tenants.default.nodes.trust"
# The types of a link that a kind of input takes. Kinds that are not here take any link, or none.
_LINKED: Mapping[Kind, frozenset[str]] = {
    Kind.TEXT: TEXTUAL | NUMERIC | {TRUSTED_ANY},
    Kind.COUNT: NUMERIC | {TRUSTED_ANY},
    Kind.NUMBER: NUMERIC,
    Kind.PATH_PART: NUMERIC,
    Kind.CHOICE: frozenset({"COMBO", TRUSTED_ANY}) | NUMERIC,
    Kind.MODEL: frozenset({"COMBO", TRUSTED_ANY}),
    # Behind a stock node that joins it to a secret folder.
    Kind.OUTPUT_PREFIX: frozenset({"STRING", TRUSTED_ANY}),
}
_LINKS_REFUSED = frozenset(
    {
        Kind.UNCHECKED_FOLDER,
        Kind.UNCHECKED_PREFIX,
        Kind.MODEL_PREFIX,
        Kind.FORMAT,
        Kind.EXPRESSION,
        Kind.DATASETS,
        Kind.REPLACING,
    }
)
# Ids as web UIs give them: numbers, also of nodes in subgraphs ("12:3"), UUIDs and words.
_PLAIN_ID = re.compile(r"[A-Za-z0-9_:-]{1,200}")
_MAX_NUMBER_TEXT = 400
_NUMBER_TEXT = re.compile(
    r"(?:[+-]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|[+-]?inf(?:inity)?"
    r"|true|false|yes|no|on|off|enabled?|disabled?|)",
    re.ASCII | re.IGNORECASE,
)
_TOO_MANY_FORMULAS = (
    f"the formulas of a prompt may have {MAX_FORMULAS} characters together at most, its formats ten times as many"
)
_SHARED_FOLDER = "it reads all files of a folder, and another tenant's upload may come to lie there"
_SHARED_DATASETS = "it names a folder of datasets, which all tenants share"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Reason why a prompt may not run on shared backends.

    Attributes:
        input_name: the input, None if the class as a whole is not trusted.
        reason: the sentence for the client, without a full stop.
        is_linked: True if the input is linked. ComfyUI may refuse the link, too.
    """

    node_id: str
    class_type: str
    pack: str
    title: Any
    input_name: str | None
    reason: str
    is_linked: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """Judgement of a prompt. `refusals` is empty if the prompt may run on shared backends.

    `unknown` are the classes that no backend describes. `savers` are the nodes whose inputs name the place that they
    write to, with the profiles of their classes. If there are savers, `opened` are the nodes that were parsed for them.
    """

    refusals: tuple[Refusal, ...] = ()
    unknown: frozenset[str] = frozenset()
    savers: Mapping[str, ClassProfile] = field(default_factory=dict)
    opened: dict[str, OpenedNode] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class FleetJudgement:
    """Judgement of one prompt for the present fleet.

    Attributes:
        catalogue_mark: the mark of the merged catalogue that was used; None if there was none.
        backends: the shared backends that may run the prompt.
        refusals: the refusals of one backend that may not run it; empty if each such backend lacks a class.
        is_known: False if no shared backend has described its classes yet.
        steering: the changes by which its savers write into secret folders on these backends.
    """

    catalogue_mark: object
    backends: frozenset[str]
    refusals: tuple[Refusal, ...] = ()
    is_known: bool = True
    steering: Steering = UNCHANGED


_Found = list[tuple[str | None, str]]


def judge(
    prompt: Mapping[str, Any],
    profile: Callable[[str], ClassProfile | None],
    trusts: Callable[[ClassProfile], bool],
) -> Judgement:
    """Judge a prompt.

    Args:
        prompt: the graph, nodes by id, each an object.
        profile: returns a class's profile, None if no backend describes it.
        trusts: returns True if the operator trusts a class.
    """
    profiles: dict[str, ClassProfile] = {}
    savers: dict[str, ClassProfile] = {}
    unknown: set[str] = set()
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if isinstance(class_type, str):
            known = profile(class_type)
            if known is None:
                unknown.add(class_type)
            else:
                profiles[node_id] = known
                if known.savers:
                    savers[node_id] = known
    types = TrueTypes(prompt, profiles, trusts)
    opened: dict[str, OpenedNode] = {}
    refusals: list[Refusal] = []
    formulas = 0
    for node_id, known in profiles.items():
        node = prompt[node_id]
        inputs = node.get("inputs")
        found: _Found | None = None
        if known.needs_look:
            formulas += _length_of(known, inputs)
            if formulas > MAX_FORMULAS:
                found = [(known.formulas[0], _TOO_MANY_FORMULAS)]
            else:
                found = _judge_class(node_id, known, trusts)
        if found is None and isinstance(inputs, dict):
            found, links = _judge_inputs(inputs, known, profiles, trusts, types)
            if links is not None and savers:
                opened[node_id] = (known.name, inputs, links)
        for input_name, reason in found or ():
            meta = node.get("_meta")
            title = meta.get("title", known.name) if isinstance(meta, dict) else known.name
            is_linked = input_name is not None and is_link(unwrapped(inputs[input_name]))
            refusals.append(Refusal(node_id, known.name, known.pack, title, input_name, reason, is_linked))
            if len(refusals) >= MAX_REFUSALS or formulas > MAX_FORMULAS:
                return Judgement(tuple(refusals), frozenset(unknown))
    return Judgement(tuple(refusals), frozenset(unknown), savers, opened)


def _length_of(profile: ClassProfile, inputs: Any) -> int:
    """Return the characters of a node's formulas, and a tenth of those of its formats, which are read faster."""
    length = 0
    for name in profile.formulas if isinstance(inputs, dict) else ():
        if isinstance(value := unwrapped(inputs.get(name)), str):
            length += len(value) if profile.inputs[name].kind is Kind.EXPRESSION else len(value) // 10
    return length


def _judge_class(node_id: str, profile: ClassProfile, trusts: Callable[[ClassProfile], bool]) -> _Found | None:
    if profile.unreviewed and not trusts(profile):
        return [(None, _not_trusted(profile))]
    if profile.hears_id and not (profile.is_reviewed or _PLAIN_ID.fullmatch(node_id) or trusts(profile)):
        return [(None, _not_trusted_with_id(profile, node_id))]
    return None


def _judge_inputs(
    inputs: dict[str, Any],
    profile: ClassProfile,
    profiles: Mapping[str, ClassProfile],
    trusts: Callable[[ClassProfile], bool],
    types: TrueTypes,
) -> tuple[_Found | None, list[Link] | None]:
    """Return the faults of the inputs, None if there are none; and the node's links, None if some value is unusual.

    Most inputs are numbers, texts and links to an output of their own type. These are passed in this loop, because it
    runs for each input of each prompt.
    """
    found: _Found | None = None
    links: list[Link] = []
    is_usual = True
    plain, names, own_types = profile.plain, profile.names, profile.own_types
    for name, raw in inputs.items():
        kind = type(raw)
        if kind is list:
            if name in own_types and len(raw) == 2:
                node_id, slot = raw
                if type(node_id) is str and type(slot) is int and node_id in profiles:
                    own_outputs = profiles[node_id].own_outputs
                    if slot in own_outputs and own_outputs[slot] <= own_types[name]:
                        links.append((name, node_id, slot))
                        continue
        elif name in plain:
            if kind in plain[name]:
                if kind is str and len(raw) > MAX_TEXT:
                    is_usual = False
                continue
        elif kind is str and name in names and BARE_NAME.fullmatch(raw):
            continue
        is_usual = False
        reason, is_form = _wrong_input(inputs, name, profile, types)
        if reason is not None and (is_form or not trusts(profile)):
            found = found or []
            found.append((name, reason))
    if not is_usual:
        return found, None
    if len(links) > 1:
        links.sort()
    return found, links


def _wrong_input(inputs: dict[str, Any], name: str, profile: ClassProfile, types: TrueTypes) -> tuple[str | None, bool]:
    """Return the reason why an input is refused, None if it is not; and True if the reason is the form of a link."""
    known, raw = profile.inputs.get(name), inputs[name]
    if is_plain_link(raw):
        return _wrong_link(known, raw, inputs, types, profile.is_reviewed), False
    value = unwrapped(raw)
    if is_link(value):
        return _MALFORMED, True
    return _wrong_literal(known, value, profile), False


def _not_trusted(profile: ClassProfile) -> str:
    shown = ", ".join(f"'{name}'" for name in profile.unreviewed[:3])
    return (
        f"Node class '{profile.name}' of the pack '{profile.pack}' is not reviewed, and its input {shown} may carry a "
        f'name or code; the operator can allow it with {SETTING}: ["{profile.pack}"]'
    )


def _not_trusted_with_id(profile: ClassProfile, node_id: str) -> str:
    return (
        f"Node class '{profile.name}' of the pack '{profile.pack}' is not reviewed and is told its node's id, so "
        f"'{node_id[:50]}' may be a name to it; give the node a number as its id"
    )


def _wrong_link(
    known: InputProfile | None, link: Any, inputs: Mapping[str, Any], types: TrueTypes, is_reviewed: bool
) -> str | None:
    """Return the reason why an input must not be linked so, None if it may."""
    if known is None or not known.takes_links or not known.is_in(inputs):
        # Refuse an undeclared link, because ComfyUI passes it to the node (execution.py, get_input_data), and runs the
        # nodes behind it without validation: no value there is made a number, or compared with its list.
        return "the class has no such input, so it must not be linked"
    if known.kind in (Kind.ANY, Kind.DATA):
        return None if types.has(link[0]) else "it is linked to a node that is not there"
    if known.kind in OPENING:
        return "the name of a file or folder must be given as it is, not linked"
    if known.kind in _LINKS_REFUSED:
        return "its value must be given as it is, not linked"
    return _wrong_types(types.of(link), known.kind, known.types, is_reviewed)


def _wrong_types(true: frozenset[str], kind: Kind, declared: frozenset[str], is_reviewed: bool) -> str | None:
    # Only short sets are remembered, because prompts can make any number of long ones.
    judge = _judge_types if len(true) <= MAX_REMEMBERED_TYPES else _judge_types.__wrapped__
    return judge(true, kind, declared, is_reviewed)


@lru_cache(maxsize=4096)
def _judge_types(true: frozenset[str], kind: Kind, declared: frozenset[str], is_reviewed: bool) -> str | None:
    if BROKEN in true:
        return "it is linked to a node or an output that is not there"
    allowed = _LINKED.get(kind)
    wrong = true - allowed if allowed is not None else _wrong_object(true, declared, is_reviewed)
    if not wrong:
        return None
    shown = ", ".join(sorted("anything" if each == ANY_TYPE else each for each in wrong))
    return f"it may be given {shown} through this link, and takes {', '.join(sorted(declared))}"


def _wrong_object(true: frozenset[str], declared: frozenset[str], is_reviewed: bool) -> frozenset[str]:
    """Return the types that an input for objects must not be given.

    By their source, stock classes only fail over a wrong object, but some open a text as a file. For a class that was
    not reviewed, that is not known.
    """
    return true - declared - {TRUSTED_ANY} if not is_reviewed else (true & MAY_HOLD_TEXT) - (declared - {ANY_TYPE})


def _wrong_literal(known: InputProfile | None, value: Any, profile: ClassProfile) -> str | None:
    """Return the reason why an input must not be given a literal, None if it may."""
    if known is None:
        # ComfyUI drops it, unless the class takes all inputs (execution.py, get_input_data).
        return None if profile.is_reviewed or not _has_text(value) else "the class has no such input"
    match known.kind:
        case Kind.OUTPUT_PREFIX | Kind.MODEL_PREFIX | Kind.UNCHECKED_FOLDER | Kind.UNCHECKED_PREFIX:
            return wrong_with_prefix(value)
        case Kind.PATH_PART:
            return wrong_with_file_part(value)
        case Kind.FORMAT:
            return wrong_with_format(value)
        case Kind.EXPRESSION:
            return wrong_with_expression(value)
        case Kind.NUMBER:
            return None if value is None or isinstance(value, (int, float)) else "it must be a number or a boolean"
        case Kind.COUNT:
            return _wrong_number(value, known.types)
        case Kind.MODEL:
            return wrong_with_model_name(value)
        case Kind.OBJECT:
            return "it must be linked to a node that makes its value" if _has_text(value) else None
        case Kind.CHOICE:
            is_listed = profile.is_reviewed or all(text in known.choices for _, text in texts(value))
            return None if is_listed else "it must be one of the choices that the class lists"
        case Kind.REPLACING:
            return None if value == "increment" else "it must be 'increment': a file that is there may be another's"
        case Kind.FOLDER:
            return _SHARED_FOLDER if _has_text(value) else None
        case Kind.DATASETS:
            return _SHARED_DATASETS if _has_text(value) else None
        case _:
            return None


def _wrong_number(value: Any, declared: frozenset[str]) -> str | None:
    """Return the reason why a literal is no number and no boolean.

    ComfyUI makes a number of a text where one type is declared (execution.py, validate_inputs). Nothing is made of it
    behind an undeclared link of a class that the operator trusts, so it must be harmless as it is.
    """
    if value is None or isinstance(value, (int, float)):
        return None
    is_short = isinstance(value, str) and len(declared) == 1 and len(value) <= _MAX_NUMBER_TEXT
    return (
        None if is_short and _NUMBER_TEXT.fullmatch(value.strip()) is not None else "it must be a number or a boolean"
    )


def _has_text(value: Any) -> bool:
    return next(texts(value), None) is not None
