"""Several backends as one."""

from __future__ import annotations

from typing import Any

from gateway.catalogue import merging


def node(choices: list[str]) -> dict[str, object]:
    """A class with a list of choices."""
    return {"input": {"required": {"name": [choices, {"tooltip": "x"}]}}, "output": ["A"]}


def test_the_union_of_classes_and_of_choices() -> None:
    merged = merging.object_info([{"A": node(["x", "y"])}, {"A": node(["y", "z"]), "B": node([])}])
    assert merged["A"]["input"]["required"]["name"] == [["x", "y", "z"], {"tooltip": "x"}]
    assert merged["B"] == node([])


def test_combos_of_the_newer_form() -> None:
    def combo(options: list[str]) -> dict[str, object]:
        return {"input": {"required": {"m": ["COMBO", {"multiselect": False, "options": options}]}}}

    merged = merging.object_info([{"A": combo(["a"])}, {"A": combo(["b", "a"])}])
    assert merged["A"]["input"]["required"]["m"][1]["options"] == ["a", "b"]


def test_classes_that_differ_otherwise_keep_the_firsts_description() -> None:
    merged = merging.object_info([{"A": {"input": {}, "output": ["X"]}}, {"A": {"input": {}, "output": ["Y"]}}])
    assert merged["A"]["output"] == ["X"]


def test_devices_are_told_apart() -> None:
    stats = {"system": {"comfyui_version": "1"}, "devices": [{"name": "cuda:0", "index": 0}]}
    odd = [{"devices": 5}, {"devices": ["cuda"]}, {"devices": {"name": "x"}}, {}]
    merged = merging.system_stats([("a", stats), *(("odd", each) for each in odd), ("b", stats)])
    assert [(d["name"], d["index"]) for d in merged["devices"]] == [("a: cuda:0", 0), ("b: cuda:0", 1)]


def test_only_shared_features() -> None:
    """A backend with a small limit keeps nobody from uploading to the others."""
    flags: list[dict[str, Any]] = [
        {"x": True, "y": 1, "max_upload_size": 50},
        {"x": True, "y": 2},
        {"x": True, "max_upload_size": 1},
    ]
    merged = merging.features(flags, 100)
    assert merged == {"x": True, "max_upload_size": 50, "supports_preview_metadata": True}
    assert merging.features(flags, 30)["max_upload_size"] == 30
    assert merging.features([{}], 30)["max_upload_size"] == 30
