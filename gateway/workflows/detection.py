"""Find the usual parameters of a graph: by the links of its samplers, else by the names of inputs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from gateway.comfy.true_types import is_link, unwrapped
from gateway.workflows.model import Parameter, ParameterType, Target, class_of, inputs_of, literal_of
from gateway.workflows.reading import Describe, found_type

# Nodes that are looked at behind one link, samplers that are followed, and images that become parameters.
MAX_STEPS, MAX_SAMPLERS, MAX_IMAGES = 60, 16, 20
# Inputs of text encoders, and of nodes that hold a text, the best first.
_TEXTS = ("text", "prompt", "text_g", "text_l", "clip_l", "t5xxl", "clip_g", "string", "value", "positive_prompt")
_SEEDS = ("seed", "noise_seed", "value")
# Links that lead away from a text, a size or a seed.
_NO_TEXT = frozenset(
    "model vae clip image images pixels mask control_net latent latent_image samples style_model clip_vision "
    "clip_vision_output noise sampler sigmas".split()
)
# This class makes an empty conditioning of another one, so the text behind it does not count.
_EMPTYING = frozenset({"ConditioningZeroOut"})
_POSITIVE = ("positive", "conditioning", "cond1", "cond")
_NEGATIVE = ("negative", "uncond", "cond2")
_LATENTS = ("latent_image", "latent", "samples")
_SAMPLER_INPUTS = frozenset({*_LATENTS, "noise", "sigmas", "guider"})
_SIZE = ("width", "height")
_IMAGE_LOADERS = "LoadImage"
# Names of parameters in a graph without samplers, by inputs of the same meaning.
_BY_NAME = {
    "prompt": ("prompt", "positive_prompt", "text"),
    "negative": ("negative_prompt", "negative"),
    "seed": ("seed", "noise_seed"),
    "steps": ("steps",),
    "width": ("width",),
    "height": ("height",),
    "batch_size": ("batch_size",),
}
_TEXT_PARAMETERS = ("prompt", "negative")
_Graph = Mapping[str, Any]


def find_parameters(graph: _Graph, describe: Describe) -> tuple[Parameter, ...]:
    """Return the parameters of a graph, as docs/running.md lists them."""
    samplers = _samplers(graph)
    found = _behind_samplers(graph, samplers) if samplers else _by_names(graph)
    found |= {f"image_{n}" if n > 1 else "image": [each] for n, each in enumerate(_images(graph), start=1)}
    return tuple(
        parameter
        for name, targets in found.items()
        if (parameter := _parameter(graph, name, targets, describe)) is not None
    )


def _parameter(graph: _Graph, name: str, targets: Collection[Target], describe: Describe) -> Parameter | None:
    """Return a parameter; None if the input takes values of another type than the name promises."""
    unique = tuple(dict.fromkeys(targets))
    if not unique:
        return None
    if name.startswith("image"):
        return Parameter(name, unique, ParameterType.IMAGE)
    wanted = ParameterType.STRING if name in _TEXT_PARAMETERS else ParameterType.INTEGER
    found = found_type(graph, unique[0], describe)
    if found is None or found[0] is not wanted:
        return None
    return Parameter(name, unique, wanted, minimum=found[1], maximum=found[2], is_random=name == "seed")


def _link(graph: _Graph, node_id: str, names: Iterable[str]) -> tuple[str, Any] | None:
    """Return the source and the slot of a node's first link among these inputs."""
    inputs = inputs_of(graph, node_id)
    for name in names:
        value = unwrapped(inputs.get(name))
        if is_link(value):
            return value[0], value[1]
    return None


def _samplers(graph: _Graph) -> list[str]:
    """Return the samplers, those first to whose latent no other sampler leads."""
    found = []
    for node_id in graph:
        inputs = inputs_of(graph, node_id)
        has_guider = "guider" in inputs and _SAMPLER_INPUTS & inputs.keys()
        if _link(graph, node_id, _LATENTS) and (has_guider or {"positive", "negative"} <= inputs.keys()):
            is_sampler = "Sampler" in class_of(graph, node_id) or any(name in inputs for name in (*_SEEDS, "guider"))
            found += [node_id] if is_sampler else []
    known = frozenset(found[:MAX_SAMPLERS])
    later = {each for each in known if any(node in known for node in _latents_behind(graph, each))}
    return sorted(known, key=lambda each: (each in later, found.index(each)))


def _latents_behind(graph: _Graph, sampler: str) -> Iterator[str]:
    """Yield the nodes that a sampler's latent comes from, the nearest first."""
    links = (_link(graph, sampler, _LATENTS),)
    return _walk(graph, [link[0] for link in links if link], lambda name: name not in ("model", "vae", "clip"))


def _walk(graph: _Graph, starts: Iterable[str], follows: Callable[[str], bool]) -> Iterator[str]:
    """Yield nodes behind links, the nearest first, each once."""
    order, seen = list(starts), set(starts)
    for node_id in order:
        if len(seen) > MAX_STEPS:
            return
        yield node_id
        for name, given in inputs_of(graph, node_id).items():
            value = unwrapped(given)
            if is_link(value) and follows(name) and value[0] not in seen:
                seen.add(value[0])
                order.append(value[0])


def _behind_samplers(graph: _Graph, samplers: list[str]) -> dict[str, list[Target]]:
    first = samplers[0]
    prompt = _texts(graph, first, _POSITIVE)
    negative = [each for each in _texts(graph, first, _NEGATIVE) if each not in prompt]
    seeds = [target for each in samplers if (target := _number(graph, each, _SEEDS, ("noise",))) is not None]
    steps = [target for each in samplers if (target := _number(graph, each, ("steps",), ("sigmas",))) is not None]
    same = [each for each in steps if literal_of(graph, each) == literal_of(graph, steps[0])]
    sizes = next((found for each in _latents_behind(graph, first) if (found := _sizes(graph, each))), {})
    return {"prompt": prompt, "negative": negative, "seed": seeds, "steps": same, **sizes}


def _texts(graph: _Graph, sampler: str, names: tuple[str, ...]) -> list[Target]:
    """Return the texts to which a sampler's conditioning leads: those of the nearest node that holds any."""
    guider = _link(graph, sampler, ("guider",))
    start = _link(graph, guider[0] if guider else sampler, names)
    is_negative = names is _NEGATIVE
    order, seen = [start] if start else [], {start[0]} if start else set()
    for node_id, slot in order:
        if class_of(graph, node_id) in _EMPTYING or len(seen) > MAX_STEPS:
            continue
        if found := _literals(graph, node_id, _TEXTS, str):
            return found
        inputs = inputs_of(graph, node_id)
        # Such a node hands on both: the positive one at its first output, the negative one at its second.
        hands_on_both = {"positive", "negative"} <= inputs.keys()
        for name, given in inputs.items():
            value = unwrapped(given)
            if not is_link(value) or name in _NO_TEXT or value[0] in seen:
                continue
            if (
                hands_on_both
                and name in ("positive", "negative")
                and (name == "negative") != _is_second(slot, is_negative)
            ):
                continue
            seen.add(value[0])
            order.append((value[0], value[1]))
    return []


def _is_second(slot: Any, is_negative: bool) -> bool:
    return slot == 1 if slot in (0, 1) else is_negative


def _literals(graph: _Graph, node_id: str, names: Iterable[str], kind: type) -> list[Target]:
    """Return the inputs of these names that hold a value of a kind."""
    inputs = inputs_of(graph, node_id)
    found = [Target(node_id, name) for name in names if name in inputs]
    return [each for each in found if type(literal_of(graph, each)) is kind]


def _number(graph: _Graph, sampler: str, names: tuple[str, ...], ways: tuple[str, ...]) -> Target | None:
    """Return the input that holds a sampler's number: its own, or that of a node to which its links lead."""
    order = [sampler]
    for node_id in order:
        if found := _literals(graph, node_id, names if node_id == sampler else (*names, "value"), int):
            return found[0]
        link = _link(graph, node_id, (*names, *ways))
        if link is not None and link[0] not in order and len(order) < MAX_STEPS:
            order.append(link[0])
    return None


def _sizes(graph: _Graph, node_id: str) -> dict[str, list[Target]]:
    """Return the size, and the number, of the pictures that a node makes of nothing; none for any other node."""
    inputs = inputs_of(graph, node_id)
    if not all(name in inputs for name in _SIZE) or any(name in inputs for name in ("samples", "pixels", "image")):
        return {}
    found = {}
    for name in (*_SIZE, "batch_size"):
        target = Target(node_id, name)
        literal = literal_of(graph, target)
        link = _link(graph, node_id, (name,)) if literal is None else None
        if link is not None:
            target = next(iter(_literals(graph, link[0], ("value", name), int)), target)
            literal = literal_of(graph, target)
        if type(literal) is int:
            found[name] = [target]
    return found


def _images(graph: _Graph) -> list[Target]:
    found = [
        Target(node_id, "image")
        for node_id in graph
        if class_of(graph, node_id).startswith(_IMAGE_LOADERS)
        and type(literal_of(graph, Target(node_id, "image"))) is str
    ]
    return found[:MAX_IMAGES]


def _by_names(graph: _Graph) -> dict[str, list[Target]]:
    """Return the inputs of the usual names, each that one node alone has."""
    found: dict[str, list[Target]] = {}
    for parameter, names in _BY_NAME.items():
        kind = str if parameter in _TEXT_PARAMETERS else int
        there = [target for node_id in graph for target in _literals(graph, node_id, names, kind)[:1]]
        if len(there) == 1:
            found[parameter] = there
    return found
