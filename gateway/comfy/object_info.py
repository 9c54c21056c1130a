"""Read what one backend says about its node classes. Pure.

GET /object_info is input like any other: custom nodes write it, and a backend may be no ComfyUI at all. The reader
keeps the well-formed descriptions as they are and drops the others, so the rest of the gateway can rely on their shape.

A well-formed description is an object in which

- ``input`` is an object with the parts ``required``, ``optional`` and ``hidden``, each an object or absent;
- each input of a part is a list whose first item is a type (a text) or a list of choices, and whose second item, if
  there is one, is an object of options; a ``hidden`` input may be a text instead (``"UNIQUE_ID"``);
- no input name stands in two parts;
- ``output`` is a list of texts and lists.

ComfyUI makes these in server.py (node_info) for V1 classes and in comfy_api/latest/_io.py (get_v1_info) for V3 classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.json_members import members
from gateway.comfy.json_stream import Unreadable

# If two parts have an input of the same name, the first part keeps it (comfy_execution/graph.py, get_input_info).
PARTS = ("required", "optional", "hidden")
_SHOWN = 5
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Bounds:
    """Maximum sizes of one /object_info. A real ComfyUI with many custom nodes stays far below each of them.

    `max_depth` counts the arrays and objects of a class that lie in one another: encoders give up at 254. A class is
    parsed in one piece, so `max_bytes` and `max_weight` take 50 ms at most: its commas count 1 each, its
    arrays and objects 2. A class that orjson can't read exactly may have `max_odd` bytes.
    """

    max_classes: int = 50_000
    max_inputs: int = 5_000
    max_choices: int = 200_000
    max_depth: int = 64
    max_bytes: int = 8 * 2**20
    max_weight: int = 200_000
    max_odd: int = 2**19


BOUNDS = Bounds()


class _Malformed(Exception):
    """A description that can't be read; the text says why."""


@dataclass(frozen=True, slots=True)
class ReadClass:
    """One class as it was read: the digest of its text, and its description, None if it was dropped.

    `reasons` say why it was dropped or repaired.
    """

    digest: bytes
    description: dict[str, Any] | None
    reasons: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The readable node classes of one backend, and (class, reason) for each part that was dropped or repaired.

    `dropped` are classes that are missing from `classes`; `repaired` are classes of which something was left out.
    `read` has all classes whose text was looked at.
    """

    classes: Mapping[str, Any]
    dropped: Sequence[tuple[str, str]] = ()
    repaired: Sequence[tuple[str, str]] = ()
    read: Mapping[str, ReadClass] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the fields of a log line: counts, and the first few of each kind."""
        return {
            "classes": len(self.classes),
            "dropped": len(self.dropped),
            "repaired": len(self.repaired),
            "examples": [
                f"{name[:_SHOWN_CHARACTERS]}: {reason[:_SHOWN_CHARACTERS]}"
                for name, reason in (*self.dropped[:_SHOWN], *self.repaired[:_SHOWN])
            ],
        }


def read_object_info(value: Any, bounds: Bounds = BOUNDS) -> ObjectInfo:
    """Return the well-formed node classes of a parsed /object_info.

    A class that needs no repair is the very object that was passed in.
    """
    if not isinstance(value, dict):
        return ObjectInfo({}, [("", f"the answer is {_kind(value)}, not an object")])
    classes: dict[str, Any] = {}
    dropped: list[tuple[str, str]] = []
    repaired: list[tuple[str, str]] = []
    for name, description in value.items():
        if not isinstance(name, str):
            dropped.append((repr(name), "its name is not a text"))
        elif len(classes) >= bounds.max_classes:
            dropped.append((name, f"there are more than {bounds.max_classes} classes"))
        else:
            try:
                classes[name], reasons = _read_class(description, bounds)
            except _Malformed as error:
                dropped.append((name, str(error)))
            else:
                repaired += ((name, reason) for reason in reasons)
    return ObjectInfo(classes, dropped, repaired)


Recall = Callable[[str, bytes], ReadClass | None]


def read_document(
    document: bytes, recall: Recall, rest: Callable[[], None] = lambda: None, bounds: Bounds = BOUNDS
) -> ObjectInfo:
    """Return the well-formed node classes of the body of GET /object_info, as `read_object_info` does.

    Each class is parsed apart, and `rest` is called between. One that `recall` knows by its name and the digest of its
    text is not parsed again.

    Raises:
        MalformedJson: it is not JSON, or no object.
    """
    found: dict[str, ReadClass] = {}
    dropped: list[tuple[str, str]] = []
    try:
        for name, start, end in members(document, rest):
            rest()
            if len(found) >= bounds.max_classes and name not in found:
                if len(dropped) >= bounds.max_classes:
                    raise Unreadable("it has too many classes")
                dropped.append((name, f"there are more than {bounds.max_classes} classes"))
                continue
            text = document[start:end] if end - start <= bounds.max_bytes else document[start : start + 1]
            digest = hashlib.blake2b(text, digest_size=16, salt=b"%016x" % (end - start)).digest()
            found[name] = recall(name, digest) or _read_text(text, end - start, digest, bounds)
    except Unreadable as error:
        raise json_codec.MalformedJson(str(error)) from error
    repaired: list[tuple[str, str]] = []
    for name, each in found.items():
        (dropped if each.description is None else repaired).extend((name, reason) for reason in each.reasons)
    classes = {name: each.description for name, each in found.items() if each.description is not None}
    return ObjectInfo(classes, dropped, repaired, found)


def _read_text(text: bytes, size: int, digest: bytes, bounds: Bounds) -> ReadClass:
    """Read the text of one class; of one with too many bytes there is only the first.

    Raises:
        MalformedJson: it is not JSON.
    """
    try:
        if size > bounds.max_bytes:
            raise _Malformed(f"it has {size} bytes, more than {bounds.max_bytes}")
        if text.count(b",") + 2 * (text.count(b"[") + text.count(b"{")) > bounds.max_weight:
            raise _Malformed("it has too many values")
        if b"\0" in text:
            # Python's json would take it for UTF-16.
            raise json_codec.MalformedJson("a null byte is in it")
        if size <= bounds.max_odd:
            value = json_codec.loads(text)
        elif (value := json_codec.loads_exactly(text)) is None:
            raise _Malformed(f"it is no plain JSON, and has {size} bytes, more than {bounds.max_odd}")
        description, reasons = _read_class(value, bounds)
    except json_codec.TooMuchJson as error:
        return ReadClass(digest, None, (str(error),))
    except _Malformed as error:
        return ReadClass(digest, None, (str(error),))
    return ReadClass(digest, description, tuple(reasons))


def _read_class(description: Any, bounds: Bounds) -> tuple[dict[str, Any], list[str]]:
    """Return a well-formed description, and a sentence for each part that was left out."""
    if not isinstance(description, dict):
        raise _Malformed(f"its description is {_kind(description)}, not an object")
    inputs, outputs = description.get("input"), description.get("output")
    if not isinstance(inputs, dict):
        raise _Malformed(f"its input is {_kind(inputs)}, not an object")
    if not isinstance(outputs, list) or not all(isinstance(output, (str, list)) for output in outputs):
        raise _Malformed("its output is not a list of types")
    if _is_deeper(description, bounds.max_depth):
        raise _Malformed(f"it is nested more than {bounds.max_depth} deep")
    reasons: list[str] = []
    parts = _read_parts(inputs, bounds, reasons)
    return (description if not reasons else {**description, "input": parts}), reasons


def _read_parts(inputs: Mapping[Any, Any], bounds: Bounds, reasons: list[str]) -> dict[str, Any]:
    taken: set[str] = set()
    read: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        named = inputs.get(part)
        if part not in inputs:
            continue
        if named is None:
            # ComfyUI's own validation takes it for an empty part.
            reasons.append(f"{part} is null")
            continue
        if not isinstance(named, dict):
            raise _Malformed(f"{part} is {_kind(named)}, not an object")
        read[part] = _read_part(part, named, taken, reasons)
        if len(taken) > bounds.max_inputs:
            raise _Malformed(f"it has more than {bounds.max_inputs} inputs")
        if any(_choices_of(spec) > bounds.max_choices for spec in read[part].values()):
            raise _Malformed(f"a list of it has more than {bounds.max_choices} choices")
    if len(inputs) > sum(part in inputs for part in PARTS):
        reasons.append(f"its input has parts besides {', '.join(PARTS)}")
    # In the order in which they came: clients show inputs in it.
    return {part: read[part] for part in inputs if part in read}


def _read_part(part: str, named: Mapping[Any, Any], taken: set[str], reasons: list[str]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, spec in named.items():
        if not isinstance(name, str):
            raise _Malformed("the name of an input is not a text")
        if name in taken:
            reasons.append(f"{part} repeats the input {name!r}")
            continue
        taken.add(name)
        read[name] = _read_spec(part, name, spec, reasons)
    return read


def _read_spec(part: str, name: str, spec: Any, reasons: list[str]) -> Any:
    """Return the well-formed specification of one input: ``[type or choices, options, ...]``."""
    if isinstance(spec, str) and spec:
        if part != "hidden":
            # ("STRING") without its comma: ComfyUI runs such a class.
            reasons.append(f"the input {name!r} is a text, not a list")
            return [spec]
        return spec
    if not isinstance(spec, list) or not spec:
        raise _Malformed(f"the input {name!r} is {_kind(spec)}, not a list with a type")
    if not isinstance(spec[0], (str, list)):
        raise _Malformed(f"the type of the input {name!r} is {_kind(spec[0])}, not a text or a list of choices")
    if len(spec) == 1:
        return spec
    options = spec[1]
    if not isinstance(options, dict):
        reasons.append(f"the options of the input {name!r} are {_kind(options)}, not an object")
        return [spec[0], {}, *spec[2:]]
    if spec[0] == "COMBO" and not isinstance(options.get("options", []), list):
        reasons.append(f"the choices of the input {name!r} are {_kind(options['options'])}, not a list")
        return [spec[0], {key: value for key, value in options.items() if key != "options"}, *spec[2:]]
    return spec


def _choices_of(spec: Any) -> int:
    """Return how many choices an input offers; 0 for one that is no list."""
    if not isinstance(spec, list):
        return 0
    if isinstance(spec[0], list):
        return len(spec[0])
    options = spec[1].get("options") if len(spec) > 1 else None
    return len(options) if isinstance(options, list) else 0


def _is_deeper(value: Any, limit: int) -> bool:
    """Return True if arrays and objects lie more than `limit` deep in one another."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    """Return the type of a JSON value, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    kinds = {dict: "an object", list: "an array", str: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), "no JSON")
