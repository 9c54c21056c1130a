"""Values of parameters: what fits, what a refusal tells, and that the JSON Schema says the same."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.workflows.model import Parameter, ParameterType, Target, parameter_of
from gateway.workflows.reading import BadParameter, read_parameters
from gateway.workflows.values import MAX_RANDOM, BadValues, allowed_by, fits, schema_of, values_for

TARGET = (Target("1", "x"),)
GRAPH = {"1": {"class_type": "A", "inputs": {"x": 5, "y": "text", "z": ["2", 0], "b": True, "f": 0.5}}}


def nothing(_: str) -> None:
    return None


def low(first: int, _: int) -> int:
    return first


NUMBERS = st.one_of(st.none(), st.integers(-10, 10))
CHOICES = st.lists(st.one_of(st.text(max_size=3), st.integers(-3, 3)), min_size=1, max_size=4).map(tuple)


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    """Any parameter that `read_parameters` may return."""
    type_ = draw(st.sampled_from(list(ParameterType)))
    more: dict[str, Any] = {}
    if type_ in (ParameterType.INTEGER, ParameterType.NUMBER):
        least, most = draw(NUMBERS), draw(NUMBERS)
        if least is not None and most is not None and least > most:
            least, most = most, least
        more = {"minimum": least, "maximum": most, "is_random": type_ is ParameterType.INTEGER and draw(st.booleans())}
    if type_ is ParameterType.CHOICE:
        more = {"choices": draw(st.one_of(st.just(()), CHOICES))}
    if type_ is ParameterType.STRING:
        more = {"max_length": draw(st.one_of(st.none(), st.integers(1, 3)))}
    is_required = not more.get("is_random") and draw(st.booleans())
    return Parameter("p", TARGET, type_, draw(st.text(max_size=3)), is_required=is_required, **more)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-12, 12), st.floats(-12, 12), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["id", "info", "__type"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=50)
@given(parameters(), VALUES)
def test_the_schema_says_what_fits(parameter: Parameter, value: Any) -> None:
    """Null stands for no value, and an asset's object may come in the form that graphs have."""
    is_asset = isinstance(value, dict)
    if value is None or (parameter.choices and isinstance(value, (bool, float))) or is_asset:
        return
    schema = schema_of(GRAPH, [parameter])
    jsonschema_rs.meta.validate(schema)
    assert jsonschema_rs.validator_for(schema).is_valid({"p": value}) == fits(parameter, value)


@settings(max_examples=50)
@given(parameters())
def test_a_parameter_is_read_again_as_it_was_shown(parameter: Parameter) -> None:
    assert parameter_of("p", json.loads(json.dumps(parameter.shown()))) == parameter


@settings(max_examples=50)
@given(parameters(), VALUES)
def test_a_run_has_a_value_that_fits_or_a_refusal_that_names_the_parameter(parameter: Parameter, value: Any) -> None:
    if (value is None and parameter.is_required) or (value is not None and not fits(parameter, value)):
        with pytest.raises(BadValues, match="'p'") as caught:
            values_for([parameter], {"p": value}, low)
        assert {name: wrong.allowed for name, wrong in caught.value.wrong.items()} == {"p": allowed_by(parameter)}
    else:
        found = values_for([parameter], {"p": value}, low)
        assert fits(parameter, found["p"]) if "p" in found else value is None


@settings(max_examples=50)
@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1))
def test_a_random_number_is_within_the_bounds_and_exact_in_javascript(one: int, other: int) -> None:
    least, most = sorted((one, other))
    parameter = Parameter("p", TARGET, ParameterType.INTEGER, minimum=least, maximum=most, is_random=True)
    asked: list[tuple[int, int]] = []

    def pick(first: int, last: int) -> int:
        asked.append((first, last))
        return last

    assert least <= values_for([parameter], {}, pick)["p"] <= max(most, least)
    ((first, last),) = asked
    assert first == least
    assert last <= max(MAX_RANDOM, least)


def test_types_come_from_the_description_else_from_the_value() -> None:
    def describe(_: str) -> dict[str, Any]:
        inputs = {
            "x": ["FLOAT", {"min": 0.0, "max": 9.5}],
            "y": [["a", "b"], {"image_upload": True}],
            "b": ["COMBO", {"options": [1]}],
        }
        return {"input": {"required": inputs, "optional": None}}

    given_ = {name: {"node": "1", "input": name} for name in ("x", "y", "b", "f")}
    plain = {each.name: each for each in read_parameters(GRAPH, given_, nothing)}
    assert [each.type for each in plain.values()] == ["integer", "string", "boolean", "number"]
    described = {each.name: each for each in read_parameters(GRAPH, given_, describe)}
    assert [each.type for each in described.values()] == ["number", "image", "choice", "number"]
    assert (described["x"].minimum, described["x"].maximum) == (0.0, 9.5)
    (own,) = read_parameters(GRAPH, {"x": {**given_["x"], "maximum": 3}}, describe)
    assert (own.minimum, own.maximum) == (0.0, 3)
    # The bounds of another type don't count.
    (other,) = read_parameters(GRAPH, {"x": {**given_["x"], "type": "integer"}}, describe)
    assert other.maximum is None


def test_an_input_that_is_linked_has_to_be_given() -> None:
    place = {"node": "1", "input": "z"}
    with pytest.raises(BadParameter, match=r"parameters\.z\.type"):
        read_parameters(GRAPH, {"z": place}, nothing)
    (linked,) = read_parameters(GRAPH, {"z": {**place, "type": "string"}}, nothing)
    assert linked.is_required
    with pytest.raises(BadValues, match="'z': nothing was given; allowed: a string"):
        values_for([linked], {}, low)
    (defaulted,) = read_parameters(GRAPH, {"z": {**place, "type": "string", "default": "d"}}, nothing)
    assert values_for([defaulted], {"z": None}, low) == {"z": "d"}


def test_several_targets_and_places_that_fit_two_nodes() -> None:
    graph = {**GRAPH, "2": {"class_type": "A", "inputs": {"x": 5}, "_meta": {"title": "T"}}}
    targets = [{"node": "1", "input": "x"}, {"title": "T", "input": "x"}]
    (both,) = read_parameters(graph, {"x": {"targets": targets}}, nothing)
    assert both.targets == (Target("1", "x"), Target("2", "x"))
    with pytest.raises(BadParameter, match=r"'parameters.x.class_type': \"A\" was given; allowed: .* it fits 1, 2"):
        read_parameters(graph, {"x": {"class_type": "A", "input": "x"}}, nothing)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["node", "input", "type", "minimum", "choices", "default", "targets"]), VALUES))
def test_any_definition_is_read_or_refused(spec: dict[str, Any]) -> None:
    with contextlib.suppress(BadParameter):
        (found,) = read_parameters(GRAPH, {"x": {"node": "1", "input": "x", **spec}}, nothing)
        assert parameter_of("x", json.loads(json.dumps(found.shown()))) == found
        assert found.default is None or fits(found, found.default)
