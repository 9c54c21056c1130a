"""The comparison of shapes, on its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conformance.shapes import Comparison, compare, kind
from tests.conformance.distil import merge, shape_of
from tests.support.json_values import values

objects = st.dictionaries(st.text(min_size=1, max_size=5), values, min_size=1, max_size=5)
JOBS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "jobs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "at": {"type": "number"}},
                "required": ["id"],
            },
        }
    },
    "required": ["jobs"],
}


def told(shape: dict[str, Any], value: Any) -> list[str]:
    """The differences, as they are shown."""
    return [str(difference) for difference in compare(shape, value).differences]


@given(values)
def test_a_value_has_its_own_shape(value: Any) -> None:
    assert compare(shape_of(value, {}), value) == Comparison()


@given(values, values)
def test_both_of_two_values_have_their_merged_shape(one: Any, other: Any) -> None:
    merged = merge(shape_of(one, {}), shape_of(other, {}))
    assert not compare(merged, one).differences
    assert not compare(merged, other).differences


@given(values, values)
def test_values_of_another_type_differ_and_nothing_raises(wanted: Any, found: Any) -> None:
    differences = compare(shape_of(wanted, {}), found).differences
    if wanted is not None and kind(wanted) != kind(found):
        assert [(d.path, d.expected, d.found) for d in differences] == [("$", kind(wanted), kind(found))]


@given(objects, st.data())
def test_a_key_that_is_gone_is_told_by_its_path(value: dict[str, Any], data: st.DataObject) -> None:
    shape, gone = shape_of(value, {}), data.draw(st.sampled_from(sorted(value)))
    found = copy.deepcopy(value)
    del found[gone]
    (difference,) = compare(shape, found).differences
    assert gone in difference.path or repr(gone) in difference.path
    assert difference.found == "no such key"


@given(objects, st.text(min_size=6, max_size=8), values)
def test_a_key_more_is_noted_and_no_difference(value: dict[str, Any], key: str, more: Any) -> None:
    comparison = compare(shape_of(value, {}), {**value, key: more})
    assert not comparison.differences
    assert len(comparison.added) == 1


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"jobs": []}, []),
        ({}, ["$.jobs: expected array, found no such key"]),
        ({"jobs": None}, ["$.jobs: expected array, found null"]),
        ({"jobs": [{"id": "a"}, {"id": 5}]}, ["$.jobs[1].id: expected string, found number"]),
        ({"jobs": [{"id": "a", "at": True}]}, ["$.jobs[0].at: expected number, found boolean"]),
        ({"jobs": [{"id": "a", "at": 1.5}]}, []),
        ([], ["$: expected object, found array"]),
    ],
)
def test_paths_and_types(found: Any, expected: list[str]) -> None:
    assert told(JOBS, found) == expected


def test_what_differs_alike_in_a_list_is_told_once_and_counted() -> None:
    comparison = compare(JOBS, {"jobs": [{}, {}, {"id": "a", "new": 1}, {"id": "b", "new": 2}]})
    assert [d.path for d in comparison.differences] == ["$.jobs[0].id"]
    assert comparison.alike == 1
    assert comparison.added == ["$.jobs[*].new"]


def test_a_list_in_which_each_place_has_its_meaning() -> None:
    shape = {"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}]}
    assert told(shape, [1, "a"]) == []
    assert told(shape, [1, 2]) == ["$[1]: expected string, found number"]
    assert told(shape, [1]) == ["$: expected 2 items, found 1"]
    assert told(shape, [1, "a", {}]) == ["$: expected 2 items, found 3"]


def test_an_object_whose_keys_are_ids() -> None:
    shape = {"type": "object", "additionalProperties": {"type": "object"}}
    assert told(shape, {"a-b": {}, "c d": 1}) == ["$['c d']: expected object, found number"]


def test_one_of_several_types() -> None:
    assert told({"type": ["string", "null"]}, None) == []
    assert told({"type": ["string", "null"]}, 1) == ["$: expected string or null, found number"]
