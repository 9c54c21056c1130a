"""References to assets, anywhere in a graph, for the fuzzer: they are found, replaced, and the rest stays as it was."""

from __future__ import annotations

import json
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.file_refs import finished
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2 import references
from gateway.web.v2.assets import hash_of
from gateway.web.v2.outputs import job_of
from gateway.web.v2.references import MAX_DEPTH, MAX_MISSING, TAG, TYPE, Reference
from tests.fuzz.grown import NUMBERS, Grown

_JOB = "22222222-2222-4333-8444-555555555555"
_HASH = "blake3:" + "0f" * 32
_INFOS: tuple[Any, ...] = (
    {"id": "a"},
    {"id": "a", "hash": _HASH, "file_path": "a.png"},
    {"id": f"{_JOB}.2.images.0", "hash": ""},
    {"hash": _HASH},
    {"id": "\ud800" * 400, "hash": "x" * 400},
    {"id": ""},
    {"id": 5},
    {"id": "a", "hash": [1]},
    {"id": None, "hash": None},
    {},
    [],
    None,
    "a",
)
# A text that is no tag, but looks like one, beside some that are.
_TAGS = (TAG, TAG, TAG, TAG, "core/asset", "CORE/ASSET", 'core/ASSET"', None)
_MAX_GROWN = 4


def _value(source: Grown, depth: int) -> Any:
    """Grow a value in which references stand anywhere."""
    kind = source.byte() % 8
    if kind <= 1 and depth > 0:
        reference: dict[str, Any] = {TYPE: _TAGS[source.byte() % len(_TAGS)]}
        if (chosen := source.byte() % (len(_INFOS) + 2)) < len(_INFOS):
            reference["info"] = _INFOS[chosen]
        elif chosen == len(_INFOS):
            # A reference within a reference is part of it.
            reference["info"] = {"id": "b", "more": _value(source, depth + 1)}
        return reference
    if kind == 2 or depth > 2 * _MAX_GROWN:
        return NUMBERS[source.byte() % len(NUMBERS)]
    if kind == 3:
        return source.text()
    if kind == 4:
        value: Any = {TYPE: TAG, "info": {"id": "deep"}}
        for _ in range(source.byte() % (2 * MAX_DEPTH)):
            value = [value]
        return value
    count = 1 + source.byte() % _MAX_GROWN
    if kind == 5:
        return [_value(source, depth + 1) for _ in range(count)]
    return {source.text(): _value(source, depth + 1) for _ in range(count)}


def _spelled(text: str, how: int) -> str:
    """Spell the tag in one of the ways that JSON has for it."""
    match how % 4:
        case 1:
            return text.replace(TAG, "core\\/ASSET")
        case 2:
            return text.replace(TAG, "core\\u002FASSET")
        case 3:
            return text.replace(TAG, "\\u0063ore/ASS\\u0045T")
    return text


def graph_of(data: bytes) -> bytes:
    """Return the graph that a fuzzer's bytes stand for: as they stand, or grown with references in it."""
    if not data or data[0] % 4 == 0:
        return data[1:]
    source = Grown(data[2:])
    grown = {str(n): _value(source, 1) for n in range(1 + source.byte() % _MAX_GROWN)}
    try:
        return _spelled(json.dumps(grown), data[1] if len(data) > 1 else 0).encode()
    except RecursionError:
        return data[1:]


def _replaced(value: Any, depth: int = 0) -> Any:
    """A copy of a graph with a name for each well-formed reference, made in the plainest way."""
    if depth > MAX_DEPTH or not isinstance(value, (dict, list)):
        return value

    def one(item: Any) -> Any:
        if isinstance(item, dict) and item.get(TYPE) == TAG:
            return "in.png" if isinstance(references._parsed(item), Reference) else item
        return _replaced(item, depth + 1)

    return {key: one(item) for key, item in value.items()} if isinstance(value, dict) else [one(item) for item in value]


def asset_reference(data: bytes) -> None:
    """References anywhere in a graph: each is found once, in its order, and nothing else is changed."""
    source = graph_of(data)
    try:
        graph, encode = json_codec.read_bounded(source, 400, 20_000)
    except json_codec.MalformedJson:
        return
    if not isinstance(graph, dict):
        return
    found = finished(references.references_in(graph))
    before = encode(graph)
    if found:
        # A graph is looked through if its bytes may hold one: a short one's are written anew, a long one's are not.
        assert references.may_hold_references(before)
        assert references.may_hold_references(source) or json.detect_encoding(source) not in ("utf-8", "utf-8-sig")
    expected = _replaced(graph)
    named = [each for each in found if isinstance(each, Reference)]
    malformed = [each for each in found if isinstance(each, str)]

    missing = finished(references.resolving(graph, lambda _: None))
    assert len(missing) == min(len(found), MAX_MISSING)
    assert encode(graph) == before
    said = V2Error(422, "missing_asset", ", ".join(missing[:5]), {"missing_ids": missing}).response().body
    assert "code" in json_codec.loads(said or b"")["error"]

    asked: list[Reference] = []

    def resolve(reference: Reference) -> str:
        asked.append(reference)
        assert len(hash_of(reference.hash) or "") in (0, 64)
        assert job_of(reference.id) in (None, reference.id[:36])
        return "in.png"

    assert finished(references.resolving(graph, resolve)) == malformed[:MAX_MISSING]
    assert asked == named
    assert encode(graph) == encode(expected)
    assert finished(references.references_in(graph)) == malformed


def seeds() -> tuple[bytes, ...]:
    """Graphs with references at the usual place, within lists, deep down, and in each spelling."""
    asset = {TYPE: TAG, "info": {"id": "a", "hash": _HASH, "file_path": "a.png"}}
    deep: Any = asset
    for _ in range(MAX_DEPTH + 3):
        deep = {"x": deep}
    graphs = (
        {"1": {"class_type": "LoadImage", "inputs": {"image": asset}}},
        {"1": {"class_type": "X", "inputs": {"list": [1, [asset, {TYPE: TAG}], "y"]}}, "2": asset},
        {"1": {"class_type": "X", "inputs": {str(n): {TYPE: TAG, "info": {"id": str(n)}} for n in range(60)}}},
        {"1": deep},
        asset,
    )
    raw = [b"\x00" + _spelled(json.dumps(graph), how).encode() for graph in graphs for how in range(4)]
    return (*raw, *(bytes([1, n]) + bytes(range(n, 200, 7)) for n in range(8)))
