"""Digests of parts of a graph: equal for equal parts, whatever the ids and the order of keys, and for no others."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.subgraph import digests

_SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats(width=16) | st.text(max_size=5)
# A list of a text and a number is a link, so literals that are lists are longer.
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, min_size=3, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(["a", "b", "seed", "text", "ü"])


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Graphs whose nodes link to earlier nodes alone; the ids are the places of the nodes."""
    prompt: dict[str, Any] = {}
    for place in range(draw(st.integers(1, 6))):
        inputs: dict[str, Any] = draw(st.dictionaries(_NAMES, _VALUES, max_size=3))
        for name in draw(st.lists(st.sampled_from(["x", "y"]), unique=True)) if place else ():
            inputs[name] = [str(draw(st.integers(0, place - 1))), draw(st.integers(0, 2))]
        prompt[str(place)] = {"class_type": draw(st.sampled_from(["A", "B"])), "inputs": inputs}
    return prompt


def renamed(prompt: dict[str, Any], new_id: dict[str, str]) -> dict[str, Any]:
    """Return the same graph with other ids, all keys the other way round."""
    return {
        new_id[node_id]: {
            "_meta": {"title": node_id},
            "inputs": {
                name: turned([new_id[value[0]], value[1]] if name in ("x", "y") else value)
                for name, value in reversed(node["inputs"].items())
            },
            "class_type": node["class_type"],
        }
        for node_id, node in reversed(prompt.items())
    }


def turned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: turned(item) for key, item in reversed(value.items())}
    return [turned(item) for item in value] if isinstance(value, list) else value


def dependants(prompt: dict[str, Any], changed: str) -> set[str]:
    found = {changed}
    for node_id, node in prompt.items():
        if any(node["inputs"][name][0] in found for name in ("x", "y") if name in node["inputs"]):
            found.add(node_id)
    return found


def digest_of(**inputs: Any) -> bytes:
    return digests({"1": {"class_type": "A", "inputs": inputs}}, ["1"])["1"]


@given(graphs(), st.permutations("abcdef"))
def test_ids_and_the_order_of_keys_change_nothing(prompt: dict[str, Any], letters: list[str]) -> None:
    new_id = {node_id: letters[place] for place, node_id in enumerate(prompt)}
    before, after = digests(prompt, prompt), digests(renamed(prompt, new_id), new_id.values())
    assert {new_id[node_id]: digest for node_id, digest in before.items()} == after
    assert {len(digest) for digest in after.values()} == {32}


@given(graphs(), st.data())
def test_another_literal_changes_the_dependants_alone(prompt: dict[str, Any], data: st.DataObject) -> None:
    node_id = data.draw(st.sampled_from(sorted(prompt)))
    changed = copy.deepcopy(prompt)
    name, value = data.draw(_NAMES), data.draw(_VALUES)
    old = prompt[node_id]["inputs"].get(name, ...)
    changed[node_id]["inputs"][name] = value
    before, after = digests(prompt, prompt), digests(changed, prompt)
    is_equal = old is not ... and json.dumps(old, sort_keys=True) == json.dumps(value, sort_keys=True)
    expected = set() if is_equal else dependants(prompt, node_id)
    assert {each for each in prompt if before[each] != after[each]} == expected


@given(graphs(), st.data())
def test_digests_do_not_depend_on_what_else_is_wanted(prompt: dict[str, Any], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(sorted(prompt))))
    everything = digests(prompt, prompt)
    assert digests(prompt, wanted) == {node_id: everything[node_id] for node_id in wanted}


def test_literals_that_look_alike_differ() -> None:
    values = json_codec.loads(
        b'[1, 1.0, true, "1", "true", null, "null", NaN, Infinity, -Infinity, 0, -0.0, "", [], {}, [1], "[1]", '
        b"[null], [NaN], [NaN, null], [null, NaN], 18446744073709551616, 18446744073709551617, 1.8446744073709552e19,"
        b' "\\ud800", "\\udfff", "?", ["2", 0, 0], {"a": 1}, {"a": "1"}, {"a": {"b": 1}}]'
    )
    found = {digest_of(value=value) for value in values} | {digest_of(), digest_of(other=1)}
    assert len(found) == len(values) + 2


def test_values_of_a_plain_prompt_have_digests_of_their_own() -> None:
    values = json_codec.loads_plain(b'[1, 1.0, true, "1", null, "null", [null], "", [], {}, {"a": null}, 1e308]')
    prompts = [{"1": {"class_type": "A", "inputs": {"value": value}}} for value in values]
    assert len({digests(prompt, ["1"], is_plain=True)["1"] for prompt in prompts}) == len(values)
    for odd in (b"NaN", b"-Infinity", b"1e999"):
        # A document that holds such a number is not plain.
        assert not json_codec.loads_told(b"[" + odd + b"]")[1]


def test_a_part_may_be_neither_cut_nor_joined_otherwise() -> None:
    found = [
        digest_of(a="x", b="y"),
        digest_of(a='x","b":"y'),
        digest_of(a="y", b="x"),
        digest_of(ab="xy"),
        digests({"1": {"class_type": "B", "inputs": {"a": "x", "b": "y"}}}, ["1"])["1"],
    ]
    assert len(set(found)) == len(found)


def test_links_count_by_slot_and_source_and_differ_from_literals() -> None:
    sources = {"2": {"class_type": "A", "inputs": {}}, "3": {"class_type": "B", "inputs": {}}}
    source = digests(sources, ["2"])["2"].hex()
    links = (["2", 0], ["2", 1], ["2", 0.0], ["2", True], ["3", 0], ["2", 0, 0], [source, 0], {"x": ["2", 0]})
    found = {digests({"1": {"class_type": "A", "inputs": {"x": x}}, **sources}, ["1"])["1"] for x in links}
    assert len(found) == len(links)


@pytest.mark.parametrize("value", [5, None, "x", ["2", 0], ["2", "0"], {"__value__": 5}])
def test_a_wrapped_value_counts_as_the_value(value: Any) -> None:
    for source in ("A", "B"):
        prompt = {"1": {"class_type": "A", "inputs": {"x": value}}, "2": {"class_type": source, "inputs": {}}}
        wrapped = {**prompt, "1": {"class_type": "A", "inputs": {"x": {"__value__": value}}}}
        assert (digests(prompt, ["1"]) == digests(wrapped, ["1"])) == (value != {"__value__": 5})


def test_a_long_chain_with_many_links_is_walked_once() -> None:
    chain: dict[str, Any] = {"0": {"class_type": "A", "inputs": {}}}
    for place in range(1, 10_000):
        source = str(place - 1)
        chain[str(place)] = {"class_type": "A", "inputs": {"x": [source, 0], "y": [source, 1], "z": [source, 2]}}
    last = str(len(chain) - 1)
    before = digests(chain, [last])[last]
    chain["0"]["inputs"]["seed"] = 1
    assert digests(chain, [last])[last] != before


@pytest.mark.parametrize(
    "prompt",
    [
        {"1": {"class_type": "A", "inputs": {"x": ["1", 0]}}},
        {"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}, "2": {"class_type": "A", "inputs": {"x": ["1", 0]}}},
        {
            "1": {"class_type": "A", "inputs": {"x": ["2", 0], "y": ["3", 0]}},
            "2": {"class_type": "A", "inputs": {"x": ["3", 0]}},
            "3": {"class_type": "A", "inputs": {"x": ["2", 0], "y": ["1", 0], "z": ["3", 0]}},
        },
        {"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}},
        {},
        {"1": None},
        {"1": ["A"]},
        {"1": {"class_type": None, "inputs": None}},
        {"1": {"class_type": ["A"], "inputs": [1]}},
        {"1": {}},
    ],
)
def test_broken_graphs_have_digests(prompt: dict[str, Any]) -> None:
    first = digests(prompt, ["1", "2", "1"])
    assert first == digests(prompt, ["1", "2", "1"])
    assert set(first) == {"1", "2"}
    assert {len(digest) for digest in first.values()} == {32}


def test_thousands_of_savers_behind_a_long_chain_and_a_long_text_take_little_work() -> None:
    """Each has a digest of its own; the work is counted by what is encoded."""

    def made(**inputs: Any) -> dict[str, Any]:
        return {"class_type": "A", "inputs": inputs}

    prompt: dict[str, Any] = {"0": made(value="x" * 100_000)}
    prompt |= {str(n): made(value=[str(n - 1), 0]) for n in range(1, 3_000)}
    savers = {f"s{n}": made(images=["2999", 0], filename_prefix=f"p{n}") for n in range(3_000)}
    found = digests(prompt | savers, savers)
    assert len(set(found.values())) == 3_000
    assert digests(prompt | savers, savers) == found
