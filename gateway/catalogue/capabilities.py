"""Capabilities of backends: node classes, and choices of lists (models, LoRAs), that others lack. Pure.

Only differences are kept: a fleet of equal backends has none, and a prompt costs no look at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.catalogue.merging import spelling
from gateway.catalogue.worker import no_rest

# An input with one of these options takes the name of a file that was uploaded (comfy_api/latest/_io.py, UploadType).
UPLOAD_FLAGS = ("image_upload", "video_upload", "audio_upload", "file_upload")

# These inputs name files, too, though /object_info does not say so (nodes.py).
FILE_INPUTS = {"LoadLatent": "latent"}

Need = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Differences between the backends whose /object_info is known.

    `classes`: for each node class that some backends lack, the backends that have it. `choices`: for each (class,
    input) whose lists differ, by choice in its common spelling, the backends that have it. `file_inputs`: each (class,
    input) that names a file.
    """

    backends: frozenset[str] = frozenset()
    classes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    choices: Mapping[tuple[str, str], Mapping[str, frozenset[str]]] = field(default_factory=dict)
    file_inputs: frozenset[tuple[str, str]] = frozenset()


def compare(infos: Mapping[str, Mapping[str, Any]], rest: Callable[[], None] = no_rest) -> Capabilities:
    """Return the differences between backends, from the /object_info of each. Call `rest` between classes."""
    everybody = frozenset(infos)
    holders: dict[str, list[str]] = {}
    for backend, info in infos.items():
        for name in info:
            holders.setdefault(name, []).append(backend)
        rest()
    classes = {name: frozenset(have) for name, have in holders.items() if len(have) < len(everybody)}
    choices: dict[tuple[str, str], Mapping[str, frozenset[str]]] = {}
    file_inputs: set[tuple[str, str]] = set()
    for name, have in holders.items():
        rest()
        descriptions = [(backend, infos[backend][name]) for backend in have]
        file_inputs.update((name, input_name) for input_name in _file_inputs(descriptions[0][1]))
        if name in FILE_INPUTS:
            file_inputs.add((name, FILE_INPUTS[name]))
        first = descriptions[0][1]
        if all(description is first or description == first for _, description in descriptions):
            continue
        for input_name, by_choice in _differing(descriptions):
            if (name, input_name) not in file_inputs:
                choices[name, input_name] = by_choice
    return Capabilities(everybody, classes, choices, frozenset(file_inputs))


def _differing(descriptions: list[tuple[str, Any]]) -> Iterator[tuple[str, Mapping[str, frozenset[str]]]]:
    lists: dict[str, dict[str, set[str]]] = {}
    for backend, description in descriptions:
        for input_name, _, listed in choice_lists(description):
            by_choice = lists.setdefault(input_name, {})
            for choice in listed:
                if isinstance(choice, str):
                    by_choice.setdefault(spelling(choice), set()).add(backend)
    everybody = {backend for backend, _ in descriptions}
    for input_name, by_choice in lists.items():
        if any(have != everybody for have in by_choice.values()):
            yield input_name, {choice: frozenset(have) for choice, have in by_choice.items()}


def choice_lists(description: Any) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield the lists of a node class: (input name, its options, the choices)."""
    for input_name, spec in _inputs(description):
        options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
        if isinstance(spec[0], list):
            yield input_name, options, spec[0]
        elif spec[0] == "COMBO" and isinstance(options.get("options"), list):
            yield input_name, options, options["options"]


def _inputs(description: Any) -> Iterator[tuple[str, list[Any]]]:
    parts = description.get("input") if isinstance(description, dict) else None
    for part in ("required", "optional"):
        named = parts.get(part) if isinstance(parts, dict) else None
        for input_name, spec in (named or {}).items() if isinstance(named, dict) else ():
            if isinstance(spec, (list, tuple)) and spec:
                yield input_name, list(spec)


def _file_inputs(description: Any) -> Iterator[str]:
    for input_name, spec in _inputs(description):
        if len(spec) > 1 and isinstance(spec[1], dict) and any(spec[1].get(flag) for flag in UPLOAD_FLAGS):
            yield input_name


def spelled(description: Any, input_name: str, value: str) -> str:
    """Return a choice as a description of its node class lists it, whatever its separators."""
    for name, _, choices in choice_lists(description):
        if name == input_name:
            exact, by_spelling = _spellings(choices)
            return value if value in exact else by_spelling.get(spelling(value), value)
    return value


def has_choice(description: Any, input_name: str, value: str) -> bool:
    """Return True if a list of a node class has a choice, whatever its separators."""
    for name, _, choices in choice_lists(description):
        if name == input_name:
            exact, by_spelling = _spellings(choices)
            return value in exact or spelling(value) in by_spelling
    return False


# A list may have 200,000 choices, and a prompt thousands of values that look for theirs in it.
_MAX_SPELLINGS = 16
_Spellings = tuple[frozenset[str], Mapping[str, str]]
_known_spellings: OrderedDict[int, tuple[list[Any], _Spellings]] = OrderedDict()


def _spellings(choices: list[Any]) -> _Spellings:
    """Return the texts of a list, and by spelling the first of each. Remember them for the last lists."""
    known = _known_spellings.get(id(choices))
    if known is None:
        listed = [choice for choice in choices if isinstance(choice, str)]
        found = (frozenset(listed), {spelling(choice): choice for choice in reversed(listed)})
        # The list is kept, too, so that its identity is no other's.
        known = _known_spellings[id(choices)] = (choices, found)
        if len(_known_spellings) > _MAX_SPELLINGS:
            _known_spellings.popitem(last=False)
    _known_spellings.move_to_end(id(choices))
    return known[1]


def needs_of(prompt: Mapping[str, Any], capabilities: Capabilities) -> frozenset[Need]:
    """Return the choices of a prompt that not every backend has, as (class, input, choice)."""
    if not capabilities.choices:
        return frozenset()
    by_class: dict[str, list[str]] = {}
    for name, input_name in capabilities.choices:
        by_class.setdefault(name, []).append(input_name)
    found = set()
    for node in prompt.values():
        class_type, inputs = node.get("class_type"), node.get("inputs")
        for input_name in by_class.get(class_type, ()) if isinstance(inputs, dict) else ():
            value = inputs.get(input_name)
            if isinstance(value, str) and spelling(value) in capabilities.choices[class_type, input_name]:
                found.add((class_type, input_name, spelling(value)))
    return frozenset(found)


def able(capabilities: Capabilities, classes: Iterable[str], needs: Iterable[Need]) -> frozenset[str] | None:
    """Return the backends that have all these classes and choices; None if all backends do.

    A class or choice that no backend has makes no difference: a backend gives its own error for it.
    """
    names = capabilities.backends
    if capabilities.classes:
        for name in classes:
            names = names & capabilities.classes.get(name, names)
    for class_type, input_name, choice in needs:
        names = names & capabilities.choices.get((class_type, input_name), {}).get(choice, names)
    return None if names == capabilities.backends else names


def lacks(capabilities: Capabilities, backend: str, classes: Iterable[str], needs: Iterable[Need]) -> list[str]:
    """Return a sentence for each class and choice that a backend lacks."""
    missing = [
        f"has no node class '{name}'"
        for name in dict.fromkeys(classes)
        if backend not in capabilities.classes.get(name, capabilities.backends)
    ]
    return missing + [
        f"has no '{choice}' for {class_type}.{input_name}"
        for class_type, input_name, choice in sorted(needs)
        if backend not in capabilities.choices.get((class_type, input_name), {}).get(choice, capabilities.backends)
    ]
