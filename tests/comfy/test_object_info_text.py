"""GET /object_info's body, read class by class: the same as if it were parsed in one piece."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.json_members import members
from gateway.comfy.json_stream import Unreadable
from gateway.comfy.object_info import BOUNDS, Bounds, ObjectInfo, ReadClass, read_document, read_object_info
from tests.support.odd_info import DROPPED, KEPT, REPAIRED

_ODD = {**DROPPED, **REPAIRED, **KEPT}
_GOOD = KEPT["optional before required"]
_NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1])
_TEXTS = st.text(st.characters(codec=None), max_size=6) | st.sampled_from(
    ['"', "\\", "}", "]{", "12345678901234567890"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=10,
)
_CLASS = _JSON | st.sampled_from(list(_ODD.values())) | st.fixed_dictionaries({"input": _JSON, "output": _JSON})
_SPACES = st.sampled_from(["", "", " ", "\n\t ", " \r\n" * 5])


def _never(name: str, digest: bytes) -> ReadClass | None:
    return None


def _read(document: bytes, bounds: Bounds = BOUNDS) -> ObjectInfo | None:
    try:
        return read_document(document, _never, bounds=bounds)
    except json_codec.MalformedJson:
        return None


@st.composite
def _documents(draw: st.DrawFn) -> str:
    """A catalogue with names that may come twice, spaces anywhere between, escapes or none."""
    listed = draw(st.lists(st.tuples(_TEXTS, _CLASS), max_size=5))
    is_ascii, indent = draw(st.booleans()), draw(st.sampled_from([None, 1]))
    told = [
        f"{draw(_SPACES)}{json.dumps(name, ensure_ascii=is_ascii)}{draw(_SPACES)}:{draw(_SPACES)}"
        f"{json.dumps(value, ensure_ascii=is_ascii, indent=indent)}{draw(_SPACES)}"
        for name, value in listed
    ]
    return f"{draw(_SPACES)}{{{draw(_SPACES)}{','.join(told)}}}{draw(_SPACES)}"


@given(_documents(), st.integers(2, 40))
@example('{"a": {"input": {}, "output": [NaN, 1e999, -0.0, 123456789012345678901234567890]}}', 3)
@example('{"\\u0061": 1, "a": 2}', 2)
def test_it_reads_what_a_parser_reads(text: str, window: int) -> None:
    document = text.encode("utf-8", "surrogatepass")
    whole = json.loads(text)
    expected, found = read_object_info(whole), _read(document)
    assert found is not None
    # As texts, because NaN is not equal to itself, and True is equal to 1.
    assert json.dumps(found.classes) == json.dumps(expected.classes)
    assert {name for name, _ in found.dropped} == {name for name, _ in expected.dropped}
    assert found.repaired == expected.repaired
    spans = {each.name: each for each in members(document, lambda: None, window)}
    parsed = {name: json.loads(document[start:end]) for name, start, end in spans.values()}
    assert json.dumps(parsed) == json.dumps(whole)


@given(_documents(), st.data())
def test_what_is_cut_or_changed_is_refused_or_read_as_a_parser_reads_it(text: str, data: st.DataObject) -> None:
    document = text.encode("utf-8", "surrogatepass")
    at = data.draw(st.integers(0, len(document)))
    odd = data.draw(st.sampled_from([b"", b'"', b"}", b"{", b"]", b",", b":", b"\\", b"\0", b"\xff", b"x", b"0"]))
    changed = document[:at] + odd + data.draw(st.sampled_from([b"", document[at:], document[at + 1 :]]))
    expected: Any = None
    try:
        expected = json.loads(changed.decode("utf-8", "surrogatepass"))
    except ValueError:
        pass
    found = _read(changed)
    if not isinstance(expected, dict):
        assert found is None
    else:
        assert found is not None
        assert json.dumps(found.classes) == json.dumps(read_object_info(expected).classes)


def test_a_mark_of_the_byte_order_is_passed_over() -> None:
    found = _read(b"\xef\xbb\xbf" + json_codec.dumps({"Good": _GOOD}))
    assert found is not None
    assert found.classes == {"Good": _GOOD}


@pytest.mark.parametrize("whole", [[], 5, "a", None, [{"Good": _GOOD}]])
def test_what_is_no_object_is_refused(whole: Any) -> None:
    assert _read(json_codec.dumps(whole)) is None


def test_a_class_that_is_too_large_is_left_out_alone() -> None:
    choices = [f"{n}.png" for n in range(200)]
    large = {**_GOOD, "input": {"required": {"image": [choices, {}]}}}
    nested = '{"a":' * 2_000 + "1" + "}" * 2_000
    text = f'{{"Good": {json.dumps(_GOOD)}, "Odd": {json.dumps(large)}, "Deep": {nested}, "Last": {json.dumps(_GOOD)}}}'
    for bounds in (Bounds(max_bytes=1_000), Bounds(max_weight=150)):
        found = _read(text.encode(), bounds)
        assert found is not None
        assert list(found.classes) == ["Good", "Last"]
        assert sorted(name for name, _ in found.dropped) == ["Deep", "Odd"]
    whole = _read(text.encode())
    assert whole is not None
    assert list(whole.classes) == ["Good", "Odd", "Last"]


def test_a_long_class_is_read_exactly_or_not_at_all() -> None:
    """Many digits in a row may be those of a text, or of a seed's maximum."""
    bounds = Bounds(max_odd=10)
    kept = ['"1234567890123456789012.png"', str(2**64 - 1), str(-(2**63)), "1.12345678901234567890123", '"é"']
    for said in kept:
        found = _read(b'{"A": {"input": {}, "output": [], "x": %s}}' % said.encode(), bounds)
        assert found is not None
        assert found.classes["A"]["x"] == json.loads(said)
        assert type(found.classes["A"]["x"]) is type(json.loads(said))
    for said in (str(2**64), str(-(2**63) - 1), "NaN", "-Infinity", '"\\ud800"', "1" * 400):
        found = _read(
            b'{"A": {"input": {}, "output": [], "x": %s}, "B": {"input": {}, "output": []}}' % said.encode(), bounds
        )
        assert found is not None
        assert list(found.classes) == ["B"]


def test_a_class_whose_text_is_known_is_not_parsed_again() -> None:
    document = json_codec.dumps({"A": _GOOD, "B": DROPPED["null"], "C": REPAIRED["all three"]})
    first = read_document(document, _never)
    asked: list[tuple[str, bytes]] = []

    def recall(name: str, digest: bytes) -> ReadClass | None:
        asked.append((name, digest))
        known = first.read[name]
        return known if known.digest == digest else None

    again = read_document(document, recall)
    assert asked == [(name, each.digest) for name, each in first.read.items()]
    assert again == first
    assert all(again.classes[name] is first.classes[name] for name in first.classes)
    changed = read_document(json_codec.dumps({"A": {**_GOOD, "output": ["MASK"]}, "C": REPAIRED["all three"]}), recall)
    assert changed.classes["A"]["output"] == ["MASK"]
    assert changed.classes["C"] is first.classes["C"]


def test_an_answer_with_too_many_classes_is_refused() -> None:
    bounds = Bounds(max_classes=3)
    few = _read(b"{%s}" % b",".join(b'"%d":1' % n for n in range(6)), bounds)
    assert few is not None
    assert len(few.dropped) == 6
    assert _read(b"{%s}" % b",".join(b'"%d":1' % n for n in range(7)), bounds) is None


def test_the_interpreter_is_given_back_between() -> None:
    """A long text, many small classes and a long space alike."""
    for document in (b'{"a":"%s"}' % (b"x" * 10**6), b"{%s}" % b",".join([b'"a":1'] * 1_000), b"{}" + b" " * 10**6):
        turns = itertools.count()
        list(members(document, functools.partial(next, turns)))
        assert next(turns) >= len(document) // 2**16 - 1
    with pytest.raises(Unreadable):
        list(members(b'{"%s":1}' % (b"x" * 20_000), lambda: None))
