"""Faults of a graph that ComfyUI accepts, and that then end its executor. Pure.

ComfyUI validates what its outputs need. Its executor then looks through all nodes, and follows all links, before a node
runs (execution.py, execute_async; comfy_execution/caching.py and graph.py). No handler is around that look, so that an
exception ends the thread that runs prompts. The process goes on to answer requests, and runs no prompt any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.comfy.class_profiles import ClassProfile
from gateway.comfy.true_types import is_link, unwrapped

# Maximum nodes in a row. ComfyUI follows links by recursion, and Python's limit is 1000 calls.
MAX_CHAIN = 800

Lookup = Callable[[str], Sequence[ClassProfile]]


def no_profiles(_: str) -> Sequence[ClassProfile]:
    """Return no profiles, because no backend has described its classes yet."""
    return ()


def executor_fault(prompt: Mapping[str, Any], profiles: Lookup) -> tuple[str, str] | None:
    """Return the node that would end the executor and the reason; None if no node would.

    A link that leads nowhere is left to ComfyUI's validation if its class declares the input, and if all links of the
    prompt are of declared inputs: validation follows no others, so that it misses what is behind these.

    Args:
        prompt: the graph, whose nodes are objects.
        profiles: returns the profiles of a class on the backends that have the class.
    """
    if _is_sound(prompt, profiles):
        return _too_long(prompt) if len(prompt) > MAX_CHAIN else None
    left_to_comfyui: tuple[str, str] | None = None
    is_all_checked = True
    for node_id, node in prompt.items():
        class_type = node.get("class_type", "")
        if "inputs" not in node and profiles is not no_profiles and not profiles(class_type):
            # ComfyUI refuses a class that it does not have, in words that say more.
            continue
        inputs = node.get("inputs")
        if not isinstance(inputs, dict):
            return node_id, "it has no object of inputs"
        for name, value in inputs.items():
            kind = type(value)
            if kind is not list and kind is not dict:
                continue
            link = unwrapped(value)
            if not is_link(link):
                continue
            is_checked = link is value and _is_checked(profiles(class_type), name, inputs)
            is_all_checked = is_all_checked and is_checked
            broken = _broken(prompt, link, profiles)
            if broken is not None:
                fault = node_id, f"its input '{name[:200]}' is linked to {broken}"
                if not is_checked:
                    return fault
                left_to_comfyui = left_to_comfyui or fault
    if left_to_comfyui is not None and not is_all_checked:
        return left_to_comfyui
    return _too_long(prompt) if len(prompt) > MAX_CHAIN else None


def _is_sound(prompt: Mapping[str, Any], profiles: Lookup) -> bool:
    """Return True if all nodes have inputs and all links lead to outputs: quickly, because each prompt is looked at.

    False means no fault yet: a value that may be a link in another form needs a closer look.
    """
    slots: dict[str, int] = {}
    for node in prompt.values():
        inputs = node.get("inputs")
        if type(inputs) is not dict:
            return False
        for value in inputs.values():
            if type(value) is list:
                if len(value) != 2 or type(value[0]) is not str:
                    continue
                source = prompt.get(value[0])
                if source is None or type(value[1]) is not int:
                    return False
                class_type = source.get("class_type", "")
                if type(class_type) is not str:
                    return False
                count = slots.get(class_type)
                if count is None:
                    count = min((len(profile.outputs) for profile in profiles(class_type)), default=0)
                    slots[class_type] = count
                if not 0 <= value[1] < count:
                    return False
            elif type(value) is dict:
                return False
    return True


def _broken(prompt: Mapping[str, Any], link: Sequence[Any], profiles: Lookup) -> str | None:
    """Return what a link leads to, if that is not there."""
    node_id, slot = link
    if node_id not in prompt:
        return f"node '{node_id[:200]}', which is not there"
    if not _has_output(profiles(prompt[node_id].get("class_type", "")), slot):
        return f"an output that node '{node_id[:200]}' does not have"
    return None


def _is_checked(profiles: Sequence[ClassProfile], name: str, inputs: Mapping[str, Any]) -> bool:
    """Return True if ComfyUI validates a link of an input, because its class declares the input."""
    declared = [profile.inputs.get(name) for profile in profiles]
    return bool(declared) and all(each is not None and each.takes_links and each.is_in(inputs) for each in declared)


def _has_output(profiles: Sequence[ClassProfile], slot: Any) -> bool:
    """Return False if a class can't have an output. Custom nodes may have more outputs than they declare."""
    if not isinstance(slot, int):
        return False
    return all(
        -len(profile.outputs) <= slot < len(profile.outputs) or (not profile.is_reviewed and slot >= 0)
        for profile in profiles
    )


def _too_long(prompt: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the fault of a graph with too many nodes in a row; nodes in a cycle, and behind one, count as a row."""
    # A link of a node to itself makes no row longer.
    sources = {node_id: _sources(prompt, node) - {node_id} for node_id, node in prompt.items()}
    users: dict[str, list[str]] = {}
    for node_id, found in sources.items():
        for source in found:
            users.setdefault(source, []).append(node_id)
    left = Counter({node_id: len(found) for node_id, found in sources.items()})
    depths = dict.fromkeys(prompt, 1)
    ready = [node_id for node_id in prompt if not left[node_id]]
    for node_id in ready:
        for user in users.get(node_id, ()):
            depths[user] = max(depths[user], depths[node_id] + 1)
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    in_cycles = len(prompt) - len(ready)
    deepest = max(ready, key=lambda node_id: depths[node_id], default="")
    if depths.get(deepest, 0) + in_cycles <= MAX_CHAIN:
        return None
    return deepest or next(iter(prompt)), f"it is the last of more than {MAX_CHAIN} nodes in a row"


def _sources(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> set[str]:
    """Return the nodes that a node is linked to."""
    links = (unwrapped(value) for value in node.get("inputs", {}).values())
    return {link[0] for link in links if is_link(link) and link[0] in prompt}
