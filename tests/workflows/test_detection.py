"""The parameters that are found in graphs of the usual kinds, and in any graph at all."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.workflows.detection import find_parameters
from gateway.workflows.model import literal_of
from gateway.workflows.values import fill, schema_of, values_for
from tests.support.workflows import text_to_image


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def found_in(graph: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The inputs behind each parameter."""
    parameters = find_parameters(graph, lambda _: None)
    return {each.name: [(target.node_id, target.input_name) for target in each.targets] for each in parameters}


def test_text_to_image() -> None:
    assert found_in(text_to_image()) == {
        "prompt": [("2", "text")],
        "negative": [("3", "text")],
        "seed": [("6", "seed")],
        "steps": [("6", "steps")],
        "width": [("4", "width")],
        "height": [("4", "height")],
        "batch_size": [("4", "batch_size")],
    }


def test_flux_with_a_guider_a_noise_and_a_scheduler() -> None:
    graph = {
        "6": node("CLIPTextEncode", text="a cat", clip=["11", 0]),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["25", 0],
            guider=["22", 0],
            sampler=["16", 0],
            sigmas=["17", 0],
            latent_image=["27", 0],
        ),
        "17": node("BasicScheduler", scheduler="simple", steps=20, denoise=1, model=["30", 0]),
        "22": node("BasicGuider", model=["30", 0], conditioning=["26", 0]),
        "25": node("RandomNoise", noise_seed=7),
        "26": node("FluxGuidance", guidance=3.5, conditioning=["6", 0]),
        "27": node("EmptySD3LatentImage", width=["34", 0], height=["35", 0], batch_size=1),
        "34": node("PrimitiveNode", value=1024),
        "35": node("PrimitiveInt", value=768),
    }
    assert found_in(graph) == {
        "prompt": [("6", "text")],
        "seed": [("25", "noise_seed")],
        "steps": [("17", "steps")],
        "width": [("34", "value")],
        "height": [("35", "value")],
        "batch_size": [("27", "batch_size")],
    }


def test_an_emptied_negative_is_none() -> None:
    graph = text_to_image()
    graph["8"] = node("ConditioningZeroOut", conditioning=["2", 0])
    graph["6"]["inputs"]["negative"] = ["8", 0]
    assert "negative" not in found_in(graph)
    # The same text behind both is the prompt alone.
    graph["6"]["inputs"]["negative"] = ["2", 0]
    assert found_in(graph)["prompt"] == [("2", "text")]
    assert "negative" not in found_in(graph)


def test_a_controlnet_hands_on_both() -> None:
    graph = text_to_image()
    graph["8"] = node("ControlNetApplyAdvanced", positive=["2", 0], negative=["3", 0], image=["9", 0], strength=1.0)
    graph["9"] = node("LoadImage", image="pose.png")
    graph["6"]["inputs"] |= {"positive": ["8", 0], "negative": ["8", 1]}
    found = found_in(graph)
    assert (found["prompt"], found["negative"]) == ([("2", "text")], [("3", "text")])
    assert found["image"] == [("9", "image")]


def test_a_text_of_another_node_and_both_texts_of_sdxl() -> None:
    graph = text_to_image()
    graph["2"] = node("CLIPTextEncodeSDXL", text_g=["8", 0], text_l="a", width=1024, height=1024, clip=["1", 1])
    graph["8"] = node("PrimitiveStringMultiline", value="a cat")
    graph["3"] = node("CLIPTextEncodeSDXL", text_g="b", text_l="b", width=1024, height=1024, clip=["1", 1])
    found = found_in(graph)
    assert (found["prompt"], found["negative"]) == ([("2", "text_l")], [("3", "text_g"), ("3", "text_l")])
    graph["2"]["inputs"]["text_l"] = ["8", 0]
    assert found_in(graph)["prompt"] == [("8", "value")]
    # Not the size of the encoder, but that of the latent.
    assert found["width"] == [("4", "width")]


def test_a_second_sampler() -> None:
    """Its seed goes along, its steps if they are the same; the prompt and the size are the first one's."""
    graph = {"0": dict(text_to_image()["6"]), **text_to_image()}
    graph["8"] = node("LatentUpscale", samples=["6", 0], width=512, height=512)
    graph["0"]["inputs"] = {**graph["6"]["inputs"], "latent_image": ["8", 0], "positive": ["9", 0], "steps": 2}
    graph["9"] = node("CLIPTextEncode", clip=["1", 1], text="sharp")
    found = found_in(graph)
    assert found["prompt"] == [("2", "text")]
    assert found["seed"] == [("6", "seed"), ("0", "seed")]
    assert found["steps"] == [("6", "steps")]
    assert found["width"] == [("4", "width")]
    graph["0"]["inputs"]["steps"] = 4
    assert found_in(graph)["steps"] == [("6", "steps"), ("0", "steps")]


def test_image_to_image() -> None:
    graph = text_to_image()
    graph["4"] = node("VAEEncode", pixels=["8", 0], vae=["1", 2])
    graph["8"] = node("LoadImage", image="a.png")
    graph["9"] = node("LoadImageMask", image="b.png", channel="alpha")
    found = found_in(graph)
    assert (found["image"], found["image_2"]) == ([("8", "image")], [("9", "image")])
    assert "width" not in found


def test_without_a_sampler_the_names_tell() -> None:
    graph = {
        "1": node("PartnerNode", prompt="a cat", negative_prompt="", seed=1, size="1k"),
        "2": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "3": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    assert found_in(graph) == {
        "prompt": [("1", "prompt")],
        "negative": [("1", "negative_prompt")],
        "seed": [("1", "seed")],
        "width": [("2", "width")],
        "height": [("2", "height")],
        "batch_size": [("2", "batch_size")],
    }
    # Of two nodes nobody knows which.
    graph["4"] = node("PartnerNode", prompt="a dog", seed=2)
    assert not {"prompt", "seed"} & found_in(graph).keys()


def test_a_description_tells_the_bounds_and_refuses_another_type() -> None:
    infos: dict[str, Any] = {
        "KSampler": {"input": {"required": {"seed": ["INT", {"min": 0, "max": 2**64 - 1}], "steps": ["FLOAT", {}]}}},
        "EmptyLatentImage": {"input": {"required": {"width": ["INT", {"min": 16, "max": 16384, "step": 8}]}}},
    }
    found = {each.name: each for each in find_parameters(text_to_image(), infos.get)}
    assert (found["seed"].minimum, found["seed"].maximum, found["seed"].is_random) == (0, 2**64 - 1, True)
    assert (found["width"].minimum, found["width"].maximum) == (16, 16384)
    assert "steps" not in found


IDS = [str(n) for n in range(8)]
NAMES = (
    "positive negative conditioning latent_image samples guider noise sigmas seed noise_seed steps text prompt value "
    "width height batch_size image cond1 cond2 negative_prompt"
).split()
CLASSES = "KSampler SamplerCustomAdvanced CLIPTextEncode LoadImage EmptyLatentImage ConditioningZeroOut X".split()


def any_value(chance: random.Random) -> Any:
    link = [chance.choice([*IDS, "gone"]), chance.choice([0, 1, -1, True])]
    plain = chance.choice([5, -1, "text", "", True, 0.5, float("nan"), None, [1, 2], {}])
    return chance.choice([link, link, {"__value__": link}, plain, plain])


def any_graph(chance: random.Random) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for node_id in chance.sample(IDS, chance.randint(0, len(IDS))):
        inputs = {name: any_value(chance) for name in chance.sample(NAMES, chance.randint(0, 14))}
        nodes[node_id] = chance.choice([*[node(chance.choice(CLASSES), **inputs)] * 9, None, {"inputs": 5}])
    return nodes


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_any_graph(seed: int) -> None:
    """Each input that is found is there, holds a value of the type, and takes another one; cycles end."""
    graph = any_graph(random.Random(seed))
    parameters = find_parameters(graph, lambda _: None)
    assert len({each.name for each in parameters}) == len(parameters)
    kinds = {"string": str, "integer": int, "image": str}
    for each in parameters:
        assert each.targets
        assert not each.is_required
        for target in each.targets:
            assert type(literal_of(graph, target)) is kinds[each.type]
    schema_of(graph, parameters)
    values = values_for(parameters, {}, lambda low, high: low)
    assert values.keys() == {each.name for each in parameters if each.is_random}
    given_values = {each.name: 7 if each.type == "integer" else "new" for each in parameters}
    fill(graph, parameters, values_for(parameters, given_values, lambda low, high: low))
    for each in parameters:
        assert {literal_of(graph, target) for target in each.targets} == {given_values[each.name]}
