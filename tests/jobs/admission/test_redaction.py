"""Refusals as an isolated tenant may read them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.comfy.validation import validate_prompt
from gateway.jobs.admission.redaction import redact_node_errors, redacted

FILES = ["annas-secret.png", "bens.png"]
MANY = [f"secret-{n}.png" for n in range(37)]
INFO: dict[str, Any] = {
    "Pick": {
        "input": {
            "required": {
                "few": [FILES, {"image_upload": True}],
                "many": [MANY, {}],
                "combo": ["COMBO", {"options": MANY}],
                "count": ["INT", {"max": 5}],
                "picture": ["IMAGE"],
                "linked": [FILES],
                "chosen": ["IMAGE"],
            }
        },
        "output": ["LATENT", FILES],
        "output_node": True,
    }
}
LINKS: dict[str, Any] = {"picture": ["2", 0], "linked": ["2", 0], "chosen": ["2", 1]}
WRONG: dict[str, Any] = {"few": "x.png", "many": "y.png", "combo": "z.png", "count": 9, **LINKS}
PROMPT: dict[str, Any] = {n: {"class_type": "Pick", "inputs": WRONG} for n in "12"}


def told_of(body: dict[str, Any], *, hidden: bool = True) -> Any:
    """What a tenant reads that may read none of the lists, or all."""
    return json_codec.loads(redacted(json_codec.dumps(body), lambda *_: hidden))


def refusal() -> dict[str, Any]:
    """What the gateway says itself, by ComfyUI's rules."""
    return validate_prompt(copy.deepcopy(PROMPT), INFO).body()


def test_no_list_and_no_length_is_told() -> None:
    body = refusal()
    assert "annas-secret" in str(body)
    assert "list of length 37" in str(body)
    before, told = copy.deepcopy(body), told_of(body)
    assert not any(word in str(told) for word in ("secret", "bens", "37", "input_config"))
    errors = told["node_errors"]["1"]["errors"]
    assert [error["type"] for error in errors] == [e["type"] for e in before["node_errors"]["1"]["errors"]]
    assert errors[0]["details"] == "few: 'x.png' not in list"
    assert errors[0]["extra_info"] == {"input_name": "few", "received_value": "x.png"}
    assert told["error"]["details"].splitlines()[0] == "Value not in list: few: 'x.png' not in list"
    assert "bigger than max" in told["error"]["details"]
    assert told_of(told) == told


def test_a_refusal_with_nothing_to_hide_stays_as_it_is() -> None:
    encoded = json_codec.dumps_exact(refusal())
    assert redacted(encoded, lambda *_: False) is encoded


def test_no_absolute_path_is_told() -> None:
    path = "/root/ComfyUI/input/anna/x.png"
    error = {
        "type": "exception_during_inner_validation",
        "message": f"Exception: {path}",
        "details": f"[Errno 2] '{path}'",
        "extra_info": {"traceback": [f'File "{path}", line 1'], "exception_message": path, "linked_node": ["2", 0]},
    }
    node_errors = {"1": {"errors": [error], "dependent_outputs": ["3"], "class_type": "Load/Image"}}
    body = error_body("prompt_outputs_failed_validation", "failed", path, {"where": [path]}, node_errors)
    told = told_of(body, hidden=False)
    assert "/root" not in str(told)
    assert "…/x.png" in str(told)
    assert told["node_errors"]["1"]["class_type"] == "Load/Image"
    assert told["node_errors"]["1"]["errors"][0]["extra_info"]["linked_node"] == ["2", 0]
    assert "/root" not in str(redact_node_errors(node_errors, lambda *_: False))
    bare = error_body("missing_node_type", "Node not found", path)
    assert told_of(bare)["error"]["details"] == "…/x.png"


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b'{"error": "/root/a/b"}', b'{"error": {}, "node_errors": {"1": "/root/a/b"}}']
)
def test_what_is_no_refusal_of_comfyuis_is_told_as_a_sentence(body: bytes) -> None:
    assert json_codec.loads(redacted(body, lambda *_: True))["error"]["type"] == "prompt_refused"


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.just("/root/a/b"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "node_errors", "errors", "extra_info", "type", "details", "message", "1"]), inner
        )
    ),
    max_leaves=15,
)


@given(_JSON)
def test_whatever_a_backend_says(value: Any) -> None:
    assert b"/root" not in redacted(json_codec.dumps_exact(value), lambda *_: True)
