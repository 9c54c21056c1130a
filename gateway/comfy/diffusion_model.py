"""The diffusion model of a graph: the file that its samplers run, found by the inputs of well-known loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Inputs that name a diffusion model's file: CheckpointLoader*, ImageOnlyCheckpointLoader, UNETLoader, the loaders of
# GGUF, NF4 and Nunchaku files, and packs whose loaders take the file as `model` (a text there is never a link).
LOADER_INPUTS = frozenset({"ckpt_name", "base_ckpt_name", "unet_name", "model_path", "diffusion_name", "model"})
# These take a diffusion model as an input that other classes use for upscalers and the like.
LOADER_CLASSES = {
    "DiffusionModelLoaderKJ": "model_name",
    "DiffusionModelSelector": "model_name",
    # The name of a folder, which has no suffix (nodes.py, DiffusersLoader).
    "DiffusersLoader": "model_path",
}
# Links that lead from a sampler to its loader, the best first: through LoRA loaders, patches, guiders, merges.
_LINKS = ("model", "guider", "model1", "unet", "model_high_noise", "pipe", "basic_pipe")
# Bounds of the search in a graph with several loaders.
MAX_SAMPLERS, MAX_STEPS = 32, 64


def diffusion_model(
    prompt: Mapping[str, Any], nodes: Iterable[tuple[str, str]], models: Iterable[tuple[str, str, str]]
) -> tuple[str, str]:
    """Return (node_id, file name) of a graph's diffusion model; two empty texts if it names none.

    Of several models, return the one that most samplers run; of equals, the one of the first sampler. If no sampler's
    links lead to a loader, return the first loader's.

    Args:
        nodes: (node_id, class_type) of the graph, in its order.
        models: inputs that name a model's file, as (node_id, input name, file name), in the same order.
    """
    loaders = [(node_id, model) for node_id, name, model in models if name in LOADER_INPUTS]
    if not loaders:
        loaders = _other_loaders(prompt, nodes)
        if not loaders:
            return "", ""
    names = dict(reversed(loaders))
    if len(names) == 1:
        return loaders[0]
    found: dict[str, int] = {}
    samplers = 0
    for node_id, class_type in nodes:
        if "Sampler" in class_type and samplers < MAX_SAMPLERS:
            loader = _loader_of(prompt, node_id, names)
            if loader is not None:
                samplers += 1
                found[loader] = found.get(loader, 0) + 1
    # Of equals `max` returns the first, and a dict keeps the order in which its keys came.
    node_id = max(found, key=found.__getitem__) if found else loaders[0][0]
    return node_id, names[node_id]


def _other_loaders(prompt: Mapping[str, Any], nodes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    found = []
    for node_id, class_type in nodes:
        if class_type in LOADER_CLASSES:
            inputs = prompt[node_id].get("inputs")
            name = inputs.get(LOADER_CLASSES[class_type]) if isinstance(inputs, dict) else None
            if isinstance(name, str) and name:
                found.append((node_id, name))
    return found


def _loader_of(prompt: Mapping[str, Any], node_id: str, names: Mapping[str, str]) -> str | None:
    """Return the id of the loader to which a node's links lead, if one is near."""
    for _ in range(MAX_STEPS):
        if node_id in names:
            return node_id
        node = prompt.get(node_id)
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict):
            return None
        link = next((inputs[name] for name in _LINKS if isinstance(inputs.get(name), list)), None)
        if not link or not isinstance(link[0], str):
            return None
        node_id = link[0]
    return None
