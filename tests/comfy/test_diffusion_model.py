"""The diffusion model of a graph."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.graph import survey


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _model(prompt: dict[str, Any]) -> tuple[str, str]:
    found = survey(prompt)
    return found.model_node, found.model


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (_node("CheckpointLoaderSimple", ckpt_name="sd.safetensors"), "sd.safetensors"),
        (_node("ImageOnlyCheckpointLoader", ckpt_name="svd.ckpt"), "svd.ckpt"),
        (_node("UNETLoader", unet_name="video/wan.safetensors", weight_dtype="default"), "video/wan.safetensors"),
        (_node("UnetLoaderGGUF", unet_name="flux-Q4.gguf"), "flux-Q4.gguf"),
        (_node("WanVideoModelLoader", model="wan.safetensors"), "wan.safetensors"),
        (_node("DiffusionModelLoaderKJ", model_name="flux.safetensors"), "flux.safetensors"),
        (_node("DiffusersLoader", model_path="a-folder"), "a-folder"),
    ],
)
def test_the_models_of_well_known_loaders(node: dict[str, Any], name: str) -> None:
    assert _model({"7": node}) == ("7", name)


@pytest.mark.parametrize(
    "node",
    [
        _node("UpscaleModelLoader", model_name="4x.pth"),
        _node("LoraLoader", lora_name="a.safetensors", model=["1", 0]),
        _node("VAELoader", vae_name="ae.safetensors"),
        _node("OpenAIImage", model="gpt-image-1.5"),
        _node("CheckpointLoaderSimple", ckpt_name=["2", 0]),
        _node("CheckpointLoaderSimple", ckpt_name="x" * 5000 + ".safetensors"),
        {"class_type": "DiffusersLoader", "inputs": None},
    ],
)
def test_no_diffusion_model(node: dict[str, Any]) -> None:
    assert _model({"7": node}) == ("", "")


def test_of_several_models_the_one_counts_that_most_samplers_run() -> None:
    prompt = {
        "audio": _node("LTXVAudioVAELoader", ckpt_name="audio.safetensors"),
        "low": _node("UNETLoader", unet_name="low.safetensors"),
        "high": _node("UNETLoader", unet_name="high.safetensors"),
        "lora": _node("LoraLoaderModelOnly", model=["high", 0], lora_name="l.safetensors"),
        "first": _node("KSamplerAdvanced", model=["lora", 0]),
        "guider": _node("CFGGuider", model=["low", 0]),
        "second": _node("SamplerCustomAdvanced", guider=["guider", 0]),
    }
    assert _model(prompt) == ("high", "high.safetensors"), "of equals, the first sampler's"
    prompt["third"] = _node("KSampler", model=["low", 0])
    assert _model(prompt) == ("low", "low.safetensors")


def test_a_graph_without_links_from_a_sampler_has_the_first_model() -> None:
    prompt = {
        "1": _node("CheckpointLoaderSimple", ckpt_name="one.safetensors"),
        "2": _node("CheckpointLoaderSimple", ckpt_name="two.safetensors"),
        "3": _node("KSampler", model=["3", 0]),
        "4": _node("KSampler", model=[None, 0]),
    }
    assert _model(prompt) == ("1", "one.safetensors")
