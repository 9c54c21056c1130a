"""The review's own consistency, and that it covers the stock classes which the simulator describes."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from gateway.comfy.class_profiles import DATA_TYPES, profile_of
from gateway.comfy.node_review import Kind, file_inputs, is_stock, kind_of, pack_of, review

DERIVED = {Kind.COUNT, Kind.CHOICE, Kind.OBJECT, Kind.UNREVIEWED}
# Inputs that a class takes without declaring them (CustomCombo, accept_all_inputs).
UNDECLARED = {("CustomCombo", "index")}


def _json(package: str, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((resources.files(package) / name).read_text("utf-8"))
    return value


def _review() -> dict[str, Any]:
    return _json("gateway.comfy", "node_review.json")


def _simulated() -> dict[str, dict[str, Any]]:
    """Return the stock classes of the simulator as its /object_info describes them."""
    info = _json("gateway.simulator", "object_info.json")
    return {name: text for name, text in info.items() if is_stock(text["python_module"])}


def test_each_kind_is_explained_and_sorted_by_class() -> None:
    value = _review()
    assert list(value) == ["comfyui", "kinds", "classes"]
    assert set(value["kinds"]) == {str(kind) for kind in Kind} - {str(kind) for kind in DERIVED}
    assert list(value["classes"]) == sorted(value["classes"])
    used = {kind for inputs in value["classes"].values() for kind in inputs.values()}
    assert used == set(value["kinds"])


def test_no_class_is_reviewed_twice() -> None:
    """A second line of one class would silently replace the first."""
    text = (resources.files("gateway.comfy") / "node_review.json").read_text("utf-8")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names))
        return dict(pairs)

    json.loads(text, object_pairs_hook=unique)


def test_entries_are_well_formed() -> None:
    for inputs in _review()["classes"].values():
        assert list(inputs) == sorted(inputs)
        for name in inputs:
            assert name
            assert name.removesuffix(".*").count("*") == 0


def test_one_class_a_line() -> None:
    lines = (resources.files("gateway.comfy") / "node_review.json").read_text("utf-8").splitlines()
    for name, inputs in _review()["classes"].items():
        entry = f"{json.dumps(name)}: {json.dumps(inputs)}"
        assert entry in lines or f"{entry}," in lines


def test_stock_classes_of_the_simulator_need_no_trust() -> None:
    stock = _simulated()
    assert len(stock) > 20
    assert set(stock) - set(review().classes) == set()
    assert {name for name, text in stock.items() if profile_of(name, text, review()).needs_trust} == set()


def test_widgets_of_the_simulator_are_reviewed() -> None:
    """A widget's value is a literal that holds texts, so its type alone says too little."""
    for name, text in _simulated().items():
        derived = {
            input_name
            for input_name, each in profile_of(name, text, review()).inputs.items()
            if each.types & DATA_TYPES and each.kind in DERIVED
        }
        assert derived == set(), name


def test_inputs_of_reviewed_classes_exist_in_the_simulator() -> None:
    """A misspelt input in the review would leave the true one to its type."""
    for name, text in _simulated().items():
        known = profile_of(name, text, review()).inputs
        for entry in review().classes[name]:
            if (name, entry) in UNDECLARED:
                continue
            declared = text["input"].get("required", {}) | text["input"].get("optional", {})
            stem = entry.removesuffix(".*").partition(".")[0]
            assert entry in known if not entry.endswith(".*") else stem in known, (name, entry)
            assert stem in declared, (name, entry)


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
        # Lists of files that no upload flag marks.
        ("GeminiInputFiles", "file"),
        ("OpenAIInputFiles", "file"),
    ],
)
def test_inputs_that_open_files_are_known_as_such(pair: tuple[str, str]) -> None:
    assert pair in file_inputs()
