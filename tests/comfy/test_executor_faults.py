"""Graphs that ComfyUI accepts, and that end the thread which runs its prompts (tried on a real 0.33.0)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pytest

from gateway.comfy.class_profiles import ClassProfile, profile_of
from gateway.comfy.executor_faults import MAX_CHAIN, executor_fault, no_profiles
from gateway.comfy.node_review import review

INFO: dict[str, Any] = json.loads((resources.files("gateway.simulator") / "object_info.json").read_text())
PROFILES = {name: profile_of(name, description, review()) for name, description in INFO.items()}
IMAGE: dict[str, Any] = {
    "class_type": "EmptyImage",
    "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
}


def profiles(name: str) -> Sequence[ClassProfile]:
    """The profile of one of the simulator's classes."""
    return (PROFILES[name],) if name in PROFILES else ()


def prompt(more: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
    """A prompt that runs, unless the additions to its preview or its nodes keep it from that."""
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0], **inputs}}
    return {"1": IMAGE, "2": preview, **(more or {})}


def chain(length: int, first: str = "1") -> dict[str, Any]:
    """Nodes in a row."""
    sources = [first, *(f"c{n}" for n in range(length - 1))]
    return {
        f"c{n}": {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}} for n, source in enumerate(sources)
    }


@pytest.mark.parametrize(
    ("graph", "node_id", "reason"),
    [
        (prompt({"9": {"class_type": "EmptyImage"}}), "9", "it has no object of inputs"),
        (prompt({"9": {"class_type": "EmptyImage", "inputs": None}}), "9", "it has no object of inputs"),
        (prompt(bogus=["99", 0]), "2", "its input 'bogus' is linked to node '99', which is not there"),
        (prompt(prompt=["99", 0]), "2", "its input 'prompt' is linked to node '99', which is not there"),
        (prompt(images={"__value__": ["99", 0]}), "2", "its input 'images' is linked to node '99', which is not there"),
        (prompt(bogus=["1", 1]), "2", "its input 'bogus' is linked to an output that node '1' does not have"),
        (prompt(bogus=["1", -2]), "2", "its input 'bogus' is linked to an output that node '1' does not have"),
        (prompt(bogus=["1", 0.0]), "2", "its input 'bogus' is linked to an output that node '1' does not have"),
        (
            prompt({"9": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}}}, bogus=["9", 0]),
            "9",
            "its input 'image' is linked to node '99', which is not there",
        ),
        (prompt(chain(MAX_CHAIN)), f"c{MAX_CHAIN - 1}", f"it is the last of more than {MAX_CHAIN} nodes in a row"),
    ],
)
def test_a_graph_that_ends_the_executor(graph: dict[str, Any], node_id: str, reason: str) -> None:
    assert executor_fault(graph, profiles) == (node_id, reason)


@pytest.mark.parametrize(
    "graph",
    [
        prompt(),
        # ComfyUI refuses these itself, or never comes to the node.
        prompt(images=["99", 0]),
        prompt(images=["1", 7]),
        prompt(images=["1", 0.5]),
        prompt({"9": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}}}),
        # These run, or fail as a node does.
        prompt(bogus=["1", 0]),
        prompt(bogus=["1", -1]),
        prompt(bogus=["1", False]),
        prompt(bogus=["1"], other=[1, 0], third=["1", "0"]),
        prompt(images={"__value__": ["1", 0]}),
        prompt(bogus={"a": ["99", 0]}),
        prompt({"9": {"class_type": "Unknown"}}),
        prompt(chain(MAX_CHAIN - 1)),
        # Many nodes, but not in a row.
        prompt({f"i{n}": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}} for n in range(2 * MAX_CHAIN)}),
    ],
)
def test_a_graph_that_does_not(graph: dict[str, Any]) -> None:
    assert executor_fault(graph, profiles) is None


def test_a_custom_node_may_have_more_outputs_than_it_declares() -> None:
    more = {"9": {"class_type": "PickNode", "inputs": {"picture": "a.png"}}}
    assert executor_fault(prompt(more, bogus=["9", 5]), profiles) is None
    assert executor_fault(prompt(more, bogus=["9", -5]), profiles) is not None


def test_before_a_backend_has_described_its_classes_no_link_may_lead_nowhere() -> None:
    assert executor_fault(prompt(images=["99", 0]), no_profiles) is not None
    assert executor_fault(prompt({"9": {"class_type": "EmptyImage"}}), no_profiles) is not None
    assert executor_fault(prompt(bogus=["1", 7]), no_profiles) is None


def test_a_ring_counts_as_a_row() -> None:
    ring = chain(MAX_CHAIN + 1, first=f"c{MAX_CHAIN}")
    assert executor_fault(prompt(ring), profiles) is not None
    assert executor_fault(prompt(chain(50, first="c49")), profiles) is None
    selves = {f"s{n}": {"class_type": "ImageInvert", "inputs": {"image": [f"s{n}", 0]}} for n in range(2 * MAX_CHAIN)}
    assert executor_fault(prompt(selves), profiles) is None
