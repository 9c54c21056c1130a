"""Prompts for tests."""

from __future__ import annotations

from typing import Any


def slow(
    seed: int = 1, steps: int = 3, step_seconds: float = 0.02, prefix: str = "ComfyUI", save: bool = True
) -> dict[str, Any]:
    """A sampler and an output: takes steps × step_seconds, and its image has the seed's colour."""
    inputs = {"steps": steps, "step_seconds": step_seconds, "seed": seed, "width": 64, "height": 64}
    output: dict[str, Any] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}
    if not save:
        output = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    return {"1": {"class_type": "SlowSampler", "inputs": inputs}, "2": output}


def failing(message: str = "boom") -> dict[str, Any]:
    """A prompt that fails while it runs."""
    prompt = slow(steps=1)
    prompt["3"] = {"class_type": "FailNode", "inputs": {"image": ["1", 0], "message": message}}
    prompt["2"]["inputs"]["images"] = ["3", 0]
    return prompt


def text_to_image(seed: int = 42, steps: int = 4, model: str = "sd_xl_base_1.0.safetensors") -> dict[str, Any]:
    """The production guide's own workflow: seven nodes of a text-to-image graph."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "an astronaut on a horse"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "6": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "7": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "output"}},
    }
