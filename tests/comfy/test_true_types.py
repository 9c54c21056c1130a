"""True types: a text is known for one through switches and lists, in graphs of any length and shape."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.class_profiles import ClassProfile, profile_of
from gateway.comfy.node_review import Kind, Review
from gateway.comfy.true_types import BROKEN, TRUSTED_ANY, TrueTypes

_MATCH = {"template": {"template_id": "t", "allowed_types": "*"}}
_SWITCH = {
    "input": {
        "required": {
            "switch": ["BOOLEAN", {}],
            "on_false": ["COMFY_MATCHTYPE_V3", _MATCH],
            "on_true": ["COMFY_MATCHTYPE_V3", _MATCH],
        }
    },
    "output": ["COMFY_MATCHTYPE_V3"],
    "output_matchtypes": ["t"],
    "python_module": "comfy_extras.nodes_logic",
}
_LIST = {
    "input": {
        "required": {
            "inputs": [
                "COMFY_AUTOGROW_V3",
                {
                    "template": {
                        "input": {"required": {"input": ["COMFY_MATCHTYPE_V3", _MATCH]}},
                        "prefix": "input",
                        "min": 1,
                        "max": 10,
                    }
                },
            ]
        }
    },
    "output": ["COMFY_MATCHTYPE_V3"],
    "output_matchtypes": ["t"],
    "python_module": "comfy_extras.nodes_logic",
}


def _plain(output: list[Any], module: str = "nodes", **inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "output": output, "python_module": module}


INFO = {
    "Switch": _SWITCH,
    "List": _LIST,
    "Text": _plain(["STRING"], value=["STRING", {}]),
    "Count": _plain(["INT"], value=["INT", {}]),
    "Image": _plain(["IMAGE", "MASK"]),
    "Any": _plain(["*"], "custom_nodes.any"),
    "Names": _plain([["a", "b"]], "custom_nodes.any"),
}
REVIEW = Review(
    "0",
    {
        "Switch": {"on_false": Kind.ANY, "on_true": Kind.ANY},
        "List": {"inputs": Kind.ANY, "inputs.*": Kind.ANY},
        "Text": {"value": Kind.TEXT},
        "Count": {},
        "Image": {},
    },
)
PROFILES = {name: profile_of(name, description, REVIEW) for name, description in INFO.items()}


def types(prompt: dict[str, Any], *link: Any, trusted: bool = False) -> frozenset[str]:
    def trusts(profile: ClassProfile) -> bool:
        return trusted

    return TrueTypes(prompt, profiles_of(prompt), trusts).of(list(link))


def profiles_of(prompt: dict[str, Any]) -> dict[str, ClassProfile]:
    """Return the profiles of a prompt's nodes whose class is known."""
    return {key: PROFILES[node["class_type"]] for key, node in prompt.items() if node["class_type"] in PROFILES}


def switch(a: Any, b: Any) -> dict[str, Any]:
    return {"class_type": "Switch", "inputs": {"switch": True, "on_false": a, "on_true": b}}


class Counted(dict[str, ClassProfile]):
    """Profiles that count how often they are asked for."""

    calls = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.calls += 1
        return super().get(key, default)


TEXT = {"class_type": "Text", "inputs": {"value": "x"}}


def test_declared_types_are_taken_as_they_are() -> None:
    prompt = {"1": {"class_type": "Image", "inputs": {}}, "2": {"class_type": "Names", "inputs": {}}}
    assert types(prompt, "1", 0) == {"IMAGE"}
    assert types(prompt, "1", 1) == {"MASK"}
    assert types(prompt, "2", 0) == {"COMBO"}


def test_a_switch_has_the_types_of_both_sides() -> None:
    prompt = {"1": TEXT, "2": {"class_type": "Image", "inputs": {}}, "3": switch(["1", 0], ["2", 1])}
    assert types(prompt, "3", 0) == {"STRING", "MASK"}


@pytest.mark.parametrize(
    ("literal", "expected"),
    [("x", "STRING"), (1, "INT"), (0.5, "FLOAT"), (True, "BOOLEAN"), ({"a": 1}, "*"), (["a"], "*")],
)
def test_a_literal_has_its_own_type(literal: Any, expected: str) -> None:
    assert types({"1": switch(literal, literal)}, "1", 0) == {expected}


def test_a_list_has_the_types_of_its_items() -> None:
    prompt = {"1": TEXT, "2": {"class_type": "List", "inputs": {"inputs.input0": ["1", 0], "inputs.input3": 5}}}
    assert types(prompt, "2", 0) == {"STRING", "INT"}


def test_a_number_may_be_the_nodes_own_and_so_what_is_linked_to_that() -> None:
    prompt = {"1": {"class_type": "Any", "inputs": {}}, "2": {"class_type": "Count", "inputs": {"value": ["1", 0]}}}
    assert types(prompt, "2", 0) == {"INT", "*"}
    assert types(prompt, "2", 0, trusted=True) == {"INT", TRUSTED_ANY}


@pytest.mark.parametrize("link", [["9", 0], ["1", 7], ["2", 0]])
def test_a_link_to_nothing_is_broken(link: list[Any]) -> None:
    assert types({"1": TEXT, "2": {"class_type": "Unknown", "inputs": {}}}, *link) == {BROKEN}


def test_a_wrapped_link_is_followed() -> None:
    assert types({"1": TEXT, "2": switch({"__value__": ["1", 0]}, 5)}, "2", 0) == {"STRING", "INT"}


def test_a_cycle_counts_as_broken_and_ends() -> None:
    prompt = {"1": switch(["2", 0], ["3", 0]), "2": switch(["1", 0], 5), "3": TEXT}
    assert types(prompt, "1", 0) >= {BROKEN, "STRING"}


def test_ten_thousand_switches_asked_in_the_worst_order_take_linear_work() -> None:
    count = 10_000
    prompt = {"0": TEXT} | {str(n): switch([str(n - 1), 0], [str(n - 1), 0]) for n in range(1, count)}
    profiles = Counted(profiles_of(prompt))
    found = TrueTypes(prompt, profiles, lambda _: False)
    for n in (*range(count - 1, 0, -7), *range(1, count)):
        assert found.of([str(n), 0]) == {"STRING"}
    assert profiles.calls <= count + 1


def test_a_ladder_of_switches_takes_each_rung_once() -> None:
    """Each switch has two links to the one before: without memory that would be 2 to the power of 60."""
    prompt = {"0": TEXT} | {str(n): switch([str(n - 1), 0], [str(n - 1), 0]) for n in range(1, 60)}
    assert types(prompt, "59", 0) == {"STRING"}
