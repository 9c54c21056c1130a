"""Which classes are read again when a model folder changes."""

from __future__ import annotations

from typing import Any

from gateway.catalogue.model_folders import MAX_FOLDERS, folders_to_read, outdated_classes


def described(*lists: list[str], as_combo: bool = False) -> dict[str, Any]:
    """A class with these lists."""
    specs = {f"in{n}": ["COMBO", {"options": each}] if as_combo else [each] for n, each in enumerate(lists)}
    return {"input": {"required": specs}, "output": []}


INFO = {
    "LoraLoader": described(["a.safetensors", "b.safetensors"]),
    "Stack": described(["None", "a.safetensors", "b.safetensors"], ["x", "y"], as_combo=True),
    "Sampler": described(["euler", "heun"]),
    "Upscale": described([], as_combo=True),
    "Checkpoints": described(["m.safetensors"]),
}


def test_classes_with_the_folders_files_are_outdated() -> None:
    before, now = ["a.safetensors", "b.safetensors"], ["a.safetensors", "b.safetensors", "new.safetensors"]
    assert outdated_classes(INFO, [(before, now)]) == ["LoraLoader", "Stack"]
    assert outdated_classes(INFO, [(now[:1], [])]) == ["LoraLoader", "Stack"]


def test_a_folder_that_was_empty_may_be_any_empty_lists() -> None:
    assert outdated_classes(INFO, [([], ["u.pth"])]) == ["Upscale"]


def test_a_folder_that_is_read_for_the_first_time_is_compared_with_the_lists() -> None:
    assert outdated_classes(INFO, [(None, ["a.safetensors", "b.safetensors"])]) == []
    assert outdated_classes(INFO, [(None, ["a.safetensors", "new.safetensors"])]) == ["LoraLoader", "Stack"]
    assert outdated_classes(INFO, [(None, ["first.safetensors"])]) == ["Upscale"]


def test_nothing_changed() -> None:
    assert outdated_classes(INFO, []) == []


def test_names_that_are_no_texts_are_passed_over() -> None:
    assert outdated_classes(INFO, [([1, {"name": "a"}], [None])]) == []
    assert outdated_classes(INFO, [(None, [1, None])]) == []


def test_folders_to_read_are_bounded_and_hold_models() -> None:
    assert folders_to_read(["loras", 7, "", "custom_nodes", "datasets", "vae", "vae", "x" * 1000]) == ("loras", "vae")
    assert len(folders_to_read([f"f{n}" for n in range(1000)])) == MAX_FOLDERS
