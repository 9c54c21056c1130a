"""A refusal as one text, for the history entry of a job that a backend refused later."""

from __future__ import annotations

import pytest

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body, told_as_text


def test_the_error_then_each_node() -> None:
    node = {
        "class_type": "LoadImage",
        "errors": [
            {"message": "Custom validation failed for node", "details": "image - Invalid image file: cat.png"},
            {"message": "Required input is missing", "details": ""},
        ],
    }
    body = error_body("prompt_outputs_failed_validation", "Prompt outputs failed validation", "", None, {"1": node})
    assert told_as_text(json_codec.dumps(body)) == (
        "Prompt outputs failed validation; "
        "node 1, LoadImage: Custom validation failed for node: image - Invalid image file: cat.png; "
        "node 1, LoadImage: Required input is missing"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"Bad Gateway",
        b"[]",
        b'"x"',
        b'{"error": "x"}',
        b'{"error": {}}',
        b'{"error": {"message": 1}, "node_errors": [1]}',
    ],
)
def test_a_body_of_another_form_is_none(body: bytes) -> None:
    assert told_as_text(body) is None
