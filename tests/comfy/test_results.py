"""Results are told from previews by the node that sends them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.previews import JPEG, PNG
from gateway.comfy.results import Sender, is_result, sender_of


@pytest.mark.parametrize(
    ("description", "sender"),
    [
        (None, Sender.UNKNOWN),
        ("odd", Sender.UNKNOWN),
        ({"output_node": True, "output": []}, Sender.SAVER),
        ({"output_node": True}, Sender.SAVER),
        ({"output_node": True, "output": ["LATENT"]}, Sender.BOTH),
        ({"output_node": False, "output": ["LATENT"]}, Sender.SAMPLER),
        ({"output_node": "yes", "output": []}, Sender.SAMPLER),
        ({}, Sender.SAMPLER),
    ],
)
def test_a_class_tells_what_its_nodes_are(description: Any, sender: Sender) -> None:
    assert sender_of(description) is sender


@pytest.mark.parametrize(
    ("sender", "of_png", "of_jpeg", "of_other"),
    [
        (Sender.SAVER, True, True, True),
        (Sender.SAMPLER, False, False, False),
        (Sender.BOTH, True, False, False),
        (Sender.UNKNOWN, True, False, False),
    ],
)
@pytest.mark.parametrize("type_", [1, 2, 4])
def test_a_saver_sends_results_and_a_sampler_previews(
    type_: int, sender: Sender, of_png: bool, of_jpeg: bool, of_other: bool
) -> None:
    """Where the class does not tell, the form of the picture does."""
    assert is_result(type_, PNG, sender) is of_png
    assert is_result(type_, JPEG, sender) is of_jpeg
    assert is_result(type_, None, sender) is is_result(99, None, sender) is of_other


@pytest.mark.parametrize("sender", list(Sender))
def test_a_progress_text_is_never_a_result(sender: Sender) -> None:
    assert not is_result(3, None, sender)
