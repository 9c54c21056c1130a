"""The review's own consistency, and that it covers the stock classes which the simulator describes."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from gateway.comfy.class_profiles import profile_of
from gateway.comfy.node_review import Kind, file_inputs, is_stock, kind_of, pack_of, review

DERIVED = {Kind.COUNT, Kind.CHOICE, Kind.OBJECT, Kind.UNREVIEWED}


def _json(package: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((resources.files(package) / name).read_text("utf-8"))
    return value


def test_each_kind_is_explained_and_sorted_by_class() -> None:
    value = _json("gateway.comfy", "node_review.json")
    assert set(value) == {"comfyui", "kinds", "classes"}
    assert set(value["kinds"]) == {str(kind) for kind in Kind} - {str(kind) for kind in DERIVED}
    assert list(value["classes"]) == sorted(value["classes"])
    used = {kind for inputs in value["classes"].values() for kind in inputs.values()}
    assert used == set(value["kinds"])


def test_stock_classes_of_the_simulator_need_no_trust() -> None:
    info = _json("gateway.simulator", "object_info.json")
    stock = {name: text for name, text in info.items() if is_stock(text["python_module"])}
    assert len(stock) > 20
    assert {name for name, text in stock.items() if profile_of(name, text, review()).needs_trust} == set()


def test_a_custom_node_has_no_review_whatever_its_name() -> None:
    assert review().inputs("SaveImage", "nodes") == {"filename_prefix": Kind.OUTPUT_PREFIX}
    assert review().inputs("SaveImage", "custom_nodes.some-pack") is None
    assert review().inputs("NewClass", "nodes") is None


def test_members_of_dynamic_inputs_are_covered() -> None:
    own = review().classes["StringFormat"]
    assert kind_of(own, "values.a") is Kind.ANY
    assert kind_of(own, "f_string") is Kind.FORMAT
    assert kind_of(own, "other") is None


@pytest.mark.parametrize(
    ("module", "pack"),
    [
        ("custom_nodes.ComfyUI-Impact-Pack", "ComfyUI-Impact-Pack"),
        ("custom_nodes.pack_v1.2", "pack_v1.2"),
        ("nodes", "nodes"),
        ("comfy_extras.nodes_string", "comfy_extras.nodes_string"),
    ],
)
def test_packs_are_named_as_their_folders(module: str, pack: str) -> None:
    assert pack_of(module) == pack


@pytest.mark.parametrize(
    "pair",
    [
        ("LoadImage", "image"),
        ("Painter", "mask"),
        ("RecordAudio", "audio"),
        ("WebcamCapture", "image"),
        ("Load3D", "image"),
    ],
)
def test_inputs_that_open_files_are_known_as_such(pair: tuple[str, str]) -> None:
    assert pair in file_inputs()
