"""A refusal's body may be anybody's, so of whatever form it is, a line is logged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.web.guard.refused_prompts import MAX_BODY, MAX_NAME, reason_of


def test_the_first_node_and_its_first_error() -> None:
    error = {"type": "value_not_in_list", "extra_info": {"input_name": "a", "received_value": "secret"}}
    node = {"errors": [error, {"type": "other"}], "class_type": "A" * 500}
    body = {"error": {"type": "t", "extra_info": {"limit": "l"}}, "node_errors": {"7": node, "8": {}}}
    assert reason_of(json.dumps(body).encode()) == {
        "error": "t",
        "limit": "l",
        "nodes": 2,
        "node_id": "7",
        "node_error": "value_not_in_list",
        "class_type": "A" * MAX_NAME,
        "input_name": "a",
    }


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"no JSON",
        b"[]",
        b" " * (MAX_BODY + 1),
        *({"error": odd} for odd in (None, [], "text", {"type": {}, "extra_info": []})),
        *({"node_errors": odd} for odd in ([], {}, "text")),
    ],
)
def test_odd_bodies(body: Any) -> None:
    assert reason_of(json.dumps(body).encode() if isinstance(body, dict) else body) == {}


@pytest.mark.parametrize("node", [None, [], {"errors": {}}, {"errors": [None]}, {"errors": [{"extra_info": 1}]}])
def test_odd_nodes(node: Any) -> None:
    assert reason_of(json.dumps({"node_errors": {"1": node}}).encode()) == {"nodes": 1, "node_id": "1"}
