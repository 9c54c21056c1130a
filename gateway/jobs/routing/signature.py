"""Signature of a workload: the parts of a graph that say how long it runs. Neither texts nor seeds are in it. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy.graph import Survey

# Samplers that call the model several times in a step (comfy/k_diffusion/sampling.py). All others call it once.
CALLS = {
    "heun": 2,
    "heunpp2": 2,
    "exp_heun_2_x0": 2,
    "exp_heun_2_x0_sde": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_2s_ancestral_cfg_pp": 2,
    "dpmpp_sde": 2,
    "dpmpp_sde_gpu": 2,
    "seeds_2": 2,
    "seeds_3": 3,
    "sa_solver_pece": 2,
}
# Inputs that name the frames of a video, by latent nodes of various models.
_FRAMES = ("length", "frames", "num_frames", "video_frames", "frame_count")
_BATCH = ("batch_size", "amount")
# Nodes of a graph that are looked at; a graph of more has a rougher signature.
MAX_NODES = 2_000
MAX_SAMPLERS = 32
# Bounds of the numbers that a client sends.
MAX_STEPS, MAX_SIDE, MAX_COUNT = 10_000, 65_536, 100_000
# Longest chain of links to the node that holds a number.
MAX_LINKS = 4
MAX_NAME = 128
# Node classes whose kind is kept, because most prompts name the same few hundred.
MAX_KINDS = 10_000
_MEGAPIXEL = 2.0**20


@dataclass(frozen=True, slots=True)
class Signature:
    """Parts of a graph that its run time depends on.

    `model` is the file of the diffusion model, "" if none is known. `classes` is a digest of the node classes with
    their counts. `ev` counts the model's calls: steps times calls in a step, over all samplers. `px` are the megapixels
    of all frames of the batch.
    """

    model: str
    loras: int
    sampler: str
    steps: int
    width: int
    height: int
    frames: int
    batch: int
    classes: str
    ev: float
    px: float

    @property
    def key(self) -> str:
        """Return a short text that stands for the signature."""
        numbers = f"{self.loras} {self.steps} {self.width} {self.height} {self.frames} {self.batch} {self.ev}"
        return _digest([self.model, self.sampler, numbers, self.classes], 12)


@dataclass(frozen=True, slots=True)
class Workload:
    """A signature with its key, the node that loads the model, and the nodes that do the work. "" and () if unknown."""

    signature: Signature
    key: str
    loader: str
    samplers: tuple[str, ...]


NO_WORKLOAD = Workload(Signature("", 0, "", 0, 0, 0, 1, 1, "", 0.0, 1.0), "", "", ())


def read_workload(prompt: Mapping[str, Any], survey: Survey) -> Workload:
    """Return the workload of a parsed graph. POST /prompt waits for this, so it looks at each node once."""
    nodes = survey.nodes if len(survey.nodes) <= MAX_NODES else survey.nodes[:MAX_NODES]
    loras, shared = 0, ""
    samplers: list[str] = []
    # The steps of each node that has some, with its own sampler's name.
    runs: list[tuple[int, str]] = []
    size, pixels = (0, 0, 1, 1), 0
    for node_id, class_type in nodes:
        is_lora, is_sampler = _KINDS[class_type]
        loras += is_lora
        if is_sampler and len(samplers) < MAX_SAMPLERS:
            samplers.append(node_id)
        inputs = prompt[node_id].get("inputs")
        if not isinstance(inputs, dict):
            continue
        if "steps" in inputs:
            if len(runs) < MAX_SAMPLERS and (own := _steps(prompt, inputs)):
                runs.append((own, _name(inputs)))
        elif not shared and "sampler_name" in inputs:
            # A node that names a sampler alone (KSamplerSelect) names it for all that name none.
            shared = _name(inputs)
        if "width" in inputs and "height" in inputs:
            found = _size(prompt, inputs)
            if (total := math.prod(found)) > pixels:
                size, pixels = found, total
    ev = float(sum(own * CALLS.get(name or shared, 1) for own, name in runs))
    sampler = next((name for _, own in runs if (name := own or shared)), "")
    model = survey.model if len(survey.model) <= MAX_NAME else _digest([survey.model])
    classes = _digest(sorted([class_type for _, class_type in nodes]))
    px = pixels / _MEGAPIXEL if pixels else 1.0
    signature = Signature(model, loras, sampler, sum(own for own, _ in runs), *size, classes, ev, px)
    return Workload(signature, signature.key, survey.model_node, tuple(samplers))


class _Kinds(dict[str, tuple[bool, bool]]):
    """Kinds of node classes, by name: if it is a LoRA loader, and if it is a sampler."""

    def __missing__(self, class_type: str) -> tuple[bool, bool]:
        kind = "lora" in class_type.lower(), "Sampler" in class_type and "Select" not in class_type
        # Don't keep a long name, because a client can make up thousands of them, each as long as a prompt may be.
        if len(self) < MAX_KINDS and len(class_type) <= MAX_NAME:
            self[class_type] = kind
        return kind


_KINDS = _Kinds()


def _steps(prompt: Mapping[str, Any], inputs: Mapping[str, Any]) -> int:
    """Return the steps that a sampler runs: all, or those between its first and its last."""
    steps = _number(prompt, inputs.get("steps"), MAX_STEPS)
    if "start_at_step" in inputs and "end_at_step" in inputs:
        first = _number(prompt, inputs["start_at_step"], MAX_STEPS)
        last = _number(prompt, inputs["end_at_step"], MAX_STEPS) or steps
        return max(min(last, steps) - first, 0)
    return steps


def _size(prompt: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[int, int, int, int]:
    width = _number(prompt, inputs["width"], MAX_SIDE)
    height = _number(prompt, inputs["height"], MAX_SIDE)
    frames = batch = 1
    for name in _FRAMES:
        if name in inputs:
            frames = max(_number(prompt, inputs[name], MAX_COUNT), 1)
            break
    for name in _BATCH:
        if name in inputs:
            batch = max(_number(prompt, inputs[name], MAX_COUNT), 1)
            break
    return width, height, frames, batch


def _name(inputs: Mapping[str, Any]) -> str:
    name = inputs.get("sampler_name")
    return name[:MAX_NAME] if isinstance(name, str) else ""


def _number(prompt: Mapping[str, Any], value: object, maximum: int) -> int:
    """Return a whole number of an input, or of the node that its link leads to. 0 if there is none."""
    if type(value) is int:
        return value if 0 <= value <= maximum else maximum if value > 0 else 0
    for _ in range(MAX_LINKS):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(min(max(value, 0), maximum)) if math.isfinite(value) else 0
        if not (isinstance(value, list) and value and isinstance(value[0], str)):
            return 0
        value = _inputs(prompt, value[0]).get("value")
    return 0


def _inputs(prompt: Mapping[str, Any], node_id: str) -> Mapping[str, Any]:
    node = prompt.get(node_id)
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _digest(texts: Iterable[str], size: int = 8) -> str:
    return hashlib.blake2b("\n".join(texts).encode("utf-8", "replace"), digest_size=size).hexdigest()
