"""ComfyUI's validation, from an object_info alone (the recorded errors are in tests/conformance)."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.validation import validate_prompt
from tests.support.workflows import slow, text_to_image

INFO: dict[str, Any] = json.loads((resources.files("gateway.simulator") / "object_info.json").read_text())
INFO["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["sd_xl_base_1.0.safetensors"]
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=2), max_size=3)


def test_good_prompts() -> None:
    assert validate_prompt(text_to_image(), INFO).outputs == ["7"]
    assert validate_prompt(slow(), INFO).valid


def test_values_are_converted_in_place() -> None:
    prompt = slow()
    prompt["1"]["inputs"] |= {"steps": "4", "step_seconds": 1, "seed": {"__value__": 7}}
    assert validate_prompt(prompt, INFO).valid
    assert prompt["1"]["inputs"]["steps"] == 4
    assert prompt["1"]["inputs"]["step_seconds"] == 1.0
    assert prompt["1"]["inputs"]["seed"] == 7


def test_only_the_targets_are_executed() -> None:
    prompt = slow()
    prompt["3"] = dict(prompt["2"])
    assert sorted(validate_prompt(prompt, INFO).outputs) == ["2", "3"]
    assert validate_prompt(prompt, INFO, partial_execution_targets=["3"]).outputs == ["3"]


def test_many_choices_are_not_repeated() -> None:
    info = {**INFO, "VAELoader": {**INFO["VAELoader"], "output_node": True}}
    info["VAELoader"] = {**info["VAELoader"], "input": {"required": {"vae_name": [[f"m{n}" for n in range(30)]]}}}
    found = validate_prompt({"1": {"class_type": "VAELoader", "inputs": {"vae_name": "nope"}}}, info)
    (error,) = found.node_errors["1"]["errors"]
    assert error["details"] == "vae_name: 'nope' not in (list of length 30)"
    assert error["extra_info"]["input_config"] is None


@pytest.mark.parametrize("meta", [5, "title", ["title"], None, {}])
def test_a_missing_class_whatever_its_meta(meta: object) -> None:
    error = validate_prompt({"1": {"class_type": "Nope", "_meta": meta}}, INFO).error
    assert error is not None
    assert error["message"] == "Node 'Nope' not found. The custom node may not be installed."


def test_a_long_chain_is_a_legal_graph() -> None:
    prompt: dict[str, Any] = {"0": slow()["1"]}
    for n in range(1, 5000):
        prompt[str(n)] = {"class_type": "ImageInvert", "inputs": {"image": [str(n - 1), 0]}}
    prompt["out"] = {"class_type": "PreviewImage", "inputs": {"images": ["4999", 0]}}
    assert validate_prompt(prompt, INFO).outputs == ["out"]


@given(
    st.dictionaries(
        st.sampled_from("12345"),
        st.fixed_dictionaries(
            {
                "class_type": st.sampled_from(["SlowSampler", "SaveImage", "ImageInvert", "KSampler", "LoadImage"]),
                "inputs": st.dictionaries(
                    st.sampled_from(["image", "images", "steps", "seed", "filename_prefix", "width", "model"]),
                    VALUES | st.tuples(st.sampled_from("123459"), st.integers(-2, 3)).map(list),
                ),
            }
        ),
    )
)
def test_whatever_the_graph_it_is_an_answer(prompt: dict[str, Any]) -> None:
    found = validate_prompt(prompt, INFO)
    assert found.valid == bool(found.outputs)
    assert (found.error is None) == found.valid
    json.dumps(found.node_errors)
