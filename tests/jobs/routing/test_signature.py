"""Signatures of workloads."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.comfy.graph import survey
from gateway.jobs.routing.signature import _KINDS, MAX_SAMPLERS, Workload, read_workload
from tests.support.workflows import text_to_image


def read(prompt: dict[str, Any]) -> Workload:
    return read_workload(prompt, survey(prompt))


def test_a_text_to_image_graph() -> None:
    work = read(text_to_image(steps=20))
    signature = work.signature
    assert (signature.model, signature.sampler, signature.steps) == ("sd_xl_base_1.0.safetensors", "euler", 20)
    assert (signature.width, signature.height, signature.frames, signature.batch) == (256, 256, 1, 1)
    assert (signature.ev, signature.px, signature.loras) == (20.0, 1 / 16, 0)
    assert (work.loader, work.samplers) == ("1", ("6",))


def test_neither_texts_nor_seeds_nor_node_ids_count() -> None:
    prompt = text_to_image(seed=1)
    other = text_to_image(seed=2)
    other["2"]["inputs"]["text"] = "something else"
    other["7"]["inputs"]["filename_prefix"] = "elsewhere"
    renamed = {f"n{key}": node for key, node in other.items()}
    for node in renamed.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = [f"n{value[0]}", value[1]]
    assert read(prompt).key == read(other).key == read(renamed).key


def test_all_that_costs_time_counts() -> None:
    usual = text_to_image()
    changes: list[tuple[str, str, Any]] = [
        ("6", "steps", 9),
        ("6", "sampler_name", "heun"),
        ("4", "width", 512),
        ("4", "height", 512),
        ("4", "batch_size", 4),
        ("1", "ckpt_name", "other.safetensors"),
    ]
    keys = {read(usual).key}
    for node, name, value in changes:
        prompt = text_to_image()
        prompt[node]["inputs"][name] = value
        keys.add(read(prompt).key)
    lora = text_to_image()
    lora["8"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "a.safetensors", "model": ["1", 0]}}
    assert read(lora).signature.loras == 1
    keys.add(read(lora).key)
    assert len(keys) == len(changes) + 2


def test_second_order_samplers_call_the_model_twice_a_step() -> None:
    prompt = text_to_image(steps=10)
    prompt["6"]["inputs"]["sampler_name"] = "heun"
    assert read(prompt).signature.ev == 20.0


def test_a_part_of_the_steps() -> None:
    prompt = text_to_image(steps=30)
    prompt["6"]["inputs"] |= {"start_at_step": 10, "end_at_step": 10_000}
    assert read(prompt).signature.steps == 20


def test_samplers_of_parts_and_numbers_behind_links() -> None:
    prompt: dict[str, Any] = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan.safetensors"}},
        "2": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpm_2"}},
        "3": {"class_type": "PrimitiveInt", "inputs": {"value": 25}},
        "4": {"class_type": "BasicScheduler", "inputs": {"model": ["1", 0], "steps": ["3", 0], "scheduler": "normal"}},
        "5": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 1024, "height": 512, "length": 81}},
        "6": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"sampler": ["2", 0], "sigmas": ["4", 0], "latent_image": ["5", 0]},
        },
    }
    work = read(prompt)
    assert (work.signature.ev, work.signature.sampler, work.signature.frames) == (50.0, "dpm_2", 81)
    assert work.signature.px == 81 / 2
    assert work.samplers == ("6",)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from(["steps", "width", "height", "length", "batch_size", "sampler_name", "start_at_step", "value"])


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=2),
        st.fixed_dictionaries({"class_type": st.text(max_size=4), "inputs": st.dictionaries(_names, _values)}),
        max_size=5,
    )
)
def test_any_graph_has_a_finite_signature(prompt: dict[str, Any]) -> None:
    signature = read(prompt).signature
    assert 0 <= signature.ev < 1e12
    assert 0 < signature.px < 1e18


def test_a_large_graph_is_looked_at_in_part() -> None:
    prompt = {str(n): {"class_type": "KSampler", "inputs": {"steps": 2}} for n in range(5_000)}
    work = read(prompt)
    assert len(work.samplers) == MAX_SAMPLERS
    assert work.signature.steps <= 2 * MAX_SAMPLERS


def test_made_up_names_of_classes_take_no_memory() -> None:
    before = set(_KINDS)
    read({"1": {"class_type": "X" * 100_000, "inputs": {}}, "2": {"class_type": "LoraNotSeenBefore", "inputs": {}}})
    assert set(_KINDS) - before == {"LoraNotSeenBefore"}
