"""Profiles tell which inputs decide where a class writes, and what holds if a node leaves them out."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from gateway.comfy.class_profiles import ClassProfile, profile_of
from gateway.comfy.node_review import Kind, is_stock, review

CUSTOM = "custom_nodes.some-pack"


def profile(name: str, module: str, required: Any = None, optional: Any = None) -> ClassProfile:
    parts = {"required": required or {}, "optional": optional or {}}
    return profile_of(name, {"input": parts, "output": [], "python_module": module}, review())


def text(*options: Any) -> list[Any]:
    return ["STRING", *options]


@pytest.mark.parametrize(
    ("class_type", "savers"),
    [
        ("SaveImage", ("filename_prefix",)),
        ("SaveText", ("filename_prefix",)),
        ("CheckpointSave", ("filename_prefix",)),
        ("SaveLoRA", ("prefix",)),
        ("SaveImageDataSetToFolder", ("folder_name",)),
        ("SaveImageTextDataSetToFolder", ("folder_name",)),
        # It writes below datasets/, and no folder there is a tenant's own.
        ("SaveTrainingDataset", ()),
        # It takes a prefix and writes into temp/ by another.
        ("LossGraphNode", ()),
        ("AddTextPrefix", ()),
        ("PreviewImage", ()),
    ],
)
def test_inputs_that_decide_where_a_stock_class_writes(class_type: str, savers: tuple[str, ...]) -> None:
    inputs = {name: text({"default": "x"}) for name in ("filename_prefix", "prefix", "folder_name", "other")}
    known = profile(
        class_type, "nodes", {name: inputs[name] for name in inputs if name in review().classes[class_type]}
    )
    assert known.savers == savers
    # ComfyUI refuses a node without a required input.
    assert {name: known.inputs[name].default for name in savers} == dict.fromkeys(savers)


def test_each_class_is_steered_by_one_input_and_only_writes_beside_it() -> None:
    """Files of one saver lie in one folder, and what is checked by nobody only names files in it."""
    for name, inputs in review().classes.items():
        steering = [key for key in inputs if inputs[key] in (Kind.OUTPUT_PREFIX, Kind.MODEL_PREFIX)]
        folders = [key for key in inputs if inputs[key] is Kind.UNCHECKED_FOLDER]
        unchecked = [key for key in inputs if inputs[key] is Kind.UNCHECKED_PREFIX]
        assert len(steering) + len(folders) <= 1, name
        assert len(unchecked) == len(folders), name


def test_stock_prefixes_of_the_simulator_are_declared_as_texts() -> None:
    info = json.loads((resources.files("gateway.simulator") / "object_info.json").read_text("utf-8"))
    found = {
        (name, saver): known.inputs[saver].types
        for name, description in info.items()
        if is_stock(description["python_module"])
        for known in [profile_of(name, description, review())]
        for saver in known.savers
    }
    assert ("SaveImage", "filename_prefix") in found
    assert set(found.values()) == {frozenset({"STRING"})}


@pytest.mark.parametrize(
    ("declared", "is_saver"),
    [
        (text({"default": "ComfyUI"}), True),
        (text(), True),
        (["STRING,INT", {}], False),
        (["*", {}], False),
        ([["a", "b"], {}], False),
        (["COMBO", {"options": ["a"]}], False),
        (["INT", {}], False),
    ],
)
@pytest.mark.parametrize("part", ["required", "optional"])
def test_a_prefix_of_a_class_that_nobody_has_reviewed(declared: list[Any], is_saver: bool, part: str) -> None:
    for module, class_type in ((CUSTOM, "Save"), (CUSTOM, "LossGraphNode"), ("nodes", "NewSave")):
        known = profile(class_type, module, **{part: {"filename_prefix": declared, "prefix": text(), "path": text()}})
        assert known.savers == (("filename_prefix",) if is_saver else ())


@pytest.mark.parametrize(
    ("options", "default"),
    [
        (({"default": "my/pic"},), "my/pic"),
        (({"default": ""},), ""),
        (({"default": None},), "ComfyUI"),
        (({"default": 5},), "ComfyUI"),
        (({},), "ComfyUI"),
        ((), "ComfyUI"),
        ((["default"],), "ComfyUI"),
    ],
)
def test_what_holds_if_an_optional_prefix_is_left_out(options: tuple[Any, ...], default: str) -> None:
    known = profile("Save", CUSTOM, optional={"filename_prefix": text(*options), "other": text({"default": "y"})})
    assert known.inputs["filename_prefix"].default == default
    assert known.inputs["other"].default is None


def test_prefixes_among_the_members_of_a_dynamic_input() -> None:
    options = [
        {"key": "save", "inputs": {"optional": {"filename_prefix": text({"default": "x"})}}},
        {"key": "other", "inputs": {"required": {"filename_prefix": text({"default": "y"})}}},
        {"key": "none", "inputs": {}},
    ]
    grown = {"template": {"input": {"optional": {"a": text({"default": "z"})}}, "names": ["filename_prefix"], "min": 0}}
    known = profile(
        "Save",
        CUSTOM,
        {"way": ["COMFY_DYNAMICCOMBO_V3", {"options": options}], "list": ["COMFY_AUTOGROW_V3", grown]},
    )
    assert known.savers == ("way.filename_prefix", "list.filename_prefix")
    assert known.inputs["way.filename_prefix"].default == "x"
    assert known.inputs["way.filename_prefix"].is_in({"way": "save"})
    assert not known.inputs["way.filename_prefix"].is_in({"way": "none"})
    # A member of a list that is not there is no member.
    assert known.inputs["list.filename_prefix"].default is None
