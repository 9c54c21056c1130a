"""Nodes that the gateway added to a prompt are told to nobody."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.jobs.isolation.added_nodes import without_added

ADDED = {"g1", "g2"}


def told(data: dict[str, Any]) -> dict[str, Any] | None:
    return without_added(data, ADDED, lambda _: ("9", "SaveImage"))


@pytest.mark.parametrize("data", [{"node": "g1"}, {"node": "g2", "display_node": "g2", "output": {}}])
def test_a_message_about_an_added_node_is_dropped(data: dict[str, Any]) -> None:
    assert told(data) is None


def test_lists_and_maps_lose_the_added_ones() -> None:
    assert told({"nodes": ["1", "g1", "2"]}) == {"nodes": ["1", "2"]}
    assert told({"nodes": {"1": {"value": 1}, "g2": {"value": 1}}}) == {"nodes": {"1": {"value": 1}}}
    assert told({"outputs": {"g1": {}}, "meta": {"g1": {}, "3": {}}}) == {"outputs": {}, "meta": {"3": {}}}


def test_an_error_is_told_of_the_saver() -> None:
    error = {"node_id": "g1", "node_type": "RegexReplace", "exception_message": "x", "executed": ["1", "g2"]}
    assert told(error) == {"node_id": "9", "node_type": "SaveImage", "exception_message": "x", "executed": ["1"]}


def test_a_refusal_is_told_of_the_saver() -> None:
    extra = {"node_id": "g1", "class_type": "RegexReplace"}
    errors = {"g1": {"errors": [1], "class_type": "RegexReplace"}, "1": {"errors": [2], "class_type": "X"}}
    assert told({"error": {"type": "t", "extra_info": extra}, "node_errors": errors}) == {
        "error": {"type": "t", "extra_info": {"node_id": "9", "class_type": "SaveImage"}},
        "node_errors": {
            "9": {"errors": [1], "class_type": "SaveImage"},
            "1": {"errors": [2], "class_type": "X"},
        },
    }


def test_an_entry_loses_them_in_its_messages() -> None:
    messages = [["execution_start", {"prompt_id": "p"}], ["execution_cached", {"nodes": ["g1", "1"]}]]
    found = told({"status": {"messages": messages, "completed": True}})
    assert found is not None
    assert found["status"]["messages"] == [messages[0], ["execution_cached", {"nodes": ["1"]}]]


def test_what_names_none_is_as_it_was() -> None:
    data = {"node": "1", "output": {"images": []}, "prompt_id": "p"}
    assert told(data) == data
