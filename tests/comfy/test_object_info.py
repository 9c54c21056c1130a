"""One backend's /object_info: what is well-formed is kept as it is, what is not is dropped, and nothing is raised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.object_info import PARTS, Bounds, read_object_info
from gateway.simulator.catalogue import load_object_info
from gateway.simulator.options import SimulatorOptions
from tests.support.odd_info import DROPPED, KEPT, REPAIRED

RECORDINGS = Path(__file__).parent.parent / "conformance" / "recordings"


def is_well_formed(description: Any) -> bool:
    """Whether a description has the shape that the rest of the gateway relies on."""
    inputs, output = description["input"], description["output"]
    specs = [(part, name, spec) for part in inputs for name, spec in inputs[part].items()]
    names = [name for _, name, _ in specs]
    return (
        set(inputs) <= set(PARTS)
        and len(names) == len(set(names))
        and all(
            (isinstance(spec, str) and spec and part == "hidden")
            or (isinstance(spec[0], (str, list)) and (len(spec) == 1 or isinstance(spec[1], dict)))
            for part, _, spec in specs
        )
        and all(isinstance(each, (str, list)) for each in output)
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_SPEC = _JSON | st.tuples(st.sampled_from(["COMBO", "INT", ["a"], []]), _JSON).map(list)
_PART = _JSON | st.dictionaries(st.sampled_from(["a", "b", "c"]), _SPEC, max_size=3)
_CLASS = _JSON | st.fixed_dictionaries(
    {
        "input": _JSON | st.dictionaries(st.sampled_from([*PARTS, "other"]), _PART, max_size=4),
        "output": _JSON | st.lists(st.sampled_from(["IMAGE", ["a"]]), max_size=2),
    }
)


@given(_JSON | st.dictionaries(st.text(max_size=4), _CLASS, max_size=4))
def test_whatever_comes_what_is_kept_is_well_formed(value: Any) -> None:
    read = read_object_info(value)
    assert all(is_well_formed(description) for description in read.classes.values())
    again = read_object_info(read.classes)
    assert not again.dropped
    assert not again.repaired
    assert all(again.classes[name] is description for name, description in read.classes.items())
    json.dumps(read.summary())
    if isinstance(value, dict):
        assert len(read.classes) + len(read.dropped) == len(value)


@pytest.mark.parametrize("odd", DROPPED)
def test_what_is_malformed_is_dropped_and_the_rest_stands(odd: str) -> None:
    good = KEPT["no inputs"]
    read = read_object_info({"Odd": DROPPED[odd], "Good": good})
    assert read.classes == {"Good": good}
    ((name, reason),) = read.dropped
    assert name == "Odd"
    assert reason


@pytest.mark.parametrize("odd", REPAIRED)
def test_what_can_be_left_out_is_left_out(odd: str) -> None:
    read = read_object_info({"Odd": REPAIRED[odd]})
    assert is_well_formed(read.classes["Odd"])
    assert {name for name, _ in read.repaired} == {"Odd"}
    assert not read.dropped


@pytest.mark.parametrize("odd", KEPT)
def test_what_is_well_formed_is_kept_as_it_is(odd: str) -> None:
    read = read_object_info({"Odd": KEPT[odd]})
    assert read.classes["Odd"] is KEPT[odd]
    assert not read.repaired


def test_the_first_part_keeps_a_name_that_stands_in_several() -> None:
    for odd in ("an input and a hidden input", "required and optional", "all three"):
        inputs = read_object_info({"Odd": REPAIRED[odd]}).classes["Odd"]["input"]
        assert inputs["required"] == REPAIRED[odd]["input"]["required"]
        assert all(not named for part, named in inputs.items() if part != "required")


def test_sizes_are_bounded() -> None:
    good: Any = KEPT["no inputs"]
    bounds = Bounds(max_classes=3, max_inputs=2, max_choices=2, max_depth=6)
    many = read_object_info({f"C{n}": good for n in range(5)}, bounds)
    assert list(many.classes) == ["C0", "C1", "C2"]
    assert [name for name, _ in many.dropped] == ["C3", "C4"]
    for required in (
        {name: ["INT"] for name in "abc"},
        {"a": [["x", "y", "z"]]},
        {"a": ["COMBO", {"options": ["x", "y", "z"]}]},
        {"a": ["INT", {"x": {"y": {"z": 1}}}]},
    ):
        assert list(read_object_info({"Odd": {**good, "input": {"required": required}}}, bounds).classes) == []
    kept = {**good, "input": {"required": {"a": [["x", "y"]], "b": ["COMBO", {"options": ["x", "y"]}]}}}
    assert read_object_info({"Good": kept}, bounds).classes == {"Good": kept}


def test_a_log_line_is_short_however_much_is_dropped() -> None:
    read = read_object_info({f"{'x' * 1_000}{n}": {"input": {"y" * 1_000: 1}} for n in range(10_000)})
    summary = read.summary()
    assert (summary["classes"], summary["dropped"]) == (0, 10_000)
    assert len(json.dumps(summary)) < 2_000


def test_nothing_is_dropped_of_what_a_comfyui_says() -> None:
    infos = [load_object_info(SimulatorOptions())]
    for recording in RECORDINGS.glob("*.json"):
        infos += _infos_in(json.loads(recording.read_text()))
    assert len(infos) > 1
    for info in infos:
        read = read_object_info(info)
        assert read.classes == info
        assert not read.dropped
        assert not read.repaired


def _infos_in(value: Any) -> list[dict[str, Any]]:
    """Return each object of node classes in a recording."""
    if isinstance(value, list):
        return [found for item in value for found in _infos_in(item)]
    if not isinstance(value, dict):
        return []
    if value and all(isinstance(each, dict) and "input_order" in each for each in value.values()):
        return [value]
    return [found for item in value.values() for found in _infos_in(item)]
