"""What each backend lacks."""

from __future__ import annotations

from typing import Any

from gateway.catalogue.capabilities import compare
from gateway.catalogue.differences import MAX_NAMED, differences


def loader(*names: str) -> dict[str, Any]:
    """A class that lists models."""
    return {"input": {"required": {"name": [list(names)]}}, "output": []}


def test_each_backend_is_told_what_others_have() -> None:
    infos = {
        "a": {"Loader": loader("x", "both"), "Only": loader()},
        "b": {"Loader": loader("both", "y1", "y2"), "Other": loader("z")},
    }
    found = differences(compare(infos), {"a": "0.33.0", "b": "0.32.1", "down": "?"})
    assert list(found) == ["a", "b"]
    assert found["a"].describe() == {
        "version": "0.33.0",
        "other_versions": ["0.32.1"],
        "missing_classes": ["Other"],
        "missing_classes_count": 1,
        "missing_choices": [{"choice": "y1", "input": "Loader.name"}, {"choice": "y2", "input": "Loader.name"}],
        "missing_choices_count": 2,
    }
    assert (found["b"].classes, list(found["b"].choices)) == ({"Only"}, ["x"])


def test_equal_backends_have_none() -> None:
    infos = {name: {"Loader": loader("x")} for name in "ab"}
    assert not any(each.any for each in differences(compare(infos), dict.fromkeys("ab", "0.33.0")).values())


def test_a_backend_without_the_class_may_have_the_model() -> None:
    infos = {"a": {"Loader": loader("x")}, "b": {"Loader": loader("y")}, "c": {}}
    assert not differences(compare(infos), dict.fromkeys("abc", "1"))["c"].choices


def test_many_are_counted() -> None:
    infos = {"a": {f"N{n:04}": loader() for n in range(1000)}, "b": {}}
    described = differences(compare(infos), {"a": "1", "b": "1"})["b"].describe()
    assert (len(described["missing_classes"]), described["missing_classes_count"]) == (MAX_NAMED, 1000)
