"""The executor's look through a prompt before its first node (comfy_execution/caching.py and graph.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.comfy.true_types import is_link
from gateway.simulator.nodes import Result

# A graph with fewer nodes is not followed, because Python's limit for recursion is 1000 calls.
_MANY_NODES = 500


class WorkerEnded(Exception):
    """End of the thread that runs prompts: no handler of ComfyUI's is around this look."""


def look_through(prompt: Mapping[str, Any], outputs: Iterable[str], cached: Mapping[str, Result]) -> None:
    """Look through a prompt as ComfyUI does.

    Raises:
        WorkerEnded: a node has no inputs, a link leads nowhere, or too many nodes are linked in a row.
    """
    try:
        for node_id, node in prompt.items():
            node["inputs"].items()
            if len(prompt) > _MANY_NODES:
                _ancestry(prompt, node_id, set())
        _follow(prompt, outputs, cached)
    except (LookupError, RecursionError, TypeError) as error:
        raise WorkerEnded(repr(error)) from error


def _ancestry(prompt: Mapping[str, Any], node_id: str, known: set[str]) -> None:
    """Visit what a node is linked to, by recursion, as ComfyUI does (caching.py, get_ordered_ancestry_internal)."""
    for value in prompt[node_id]["inputs"].values():
        if is_link(value) and value[0] in prompt and value[0] not in known:
            known.add(value[0])
            _ancestry(prompt, value[0], known)


def _follow(prompt: Mapping[str, Any], outputs: Iterable[str], cached: Mapping[str, Result]) -> None:
    """Visit all nodes that the outputs need (graph.py, add_node), and the outputs of those that are cached."""
    left, seen = list(outputs), set[str]()
    while left:
        node_id = left.pop()
        if node_id in seen:
            continue
        seen.add(node_id)
        for value in prompt[node_id]["inputs"].values():
            if not is_link(value):
                continue
            if value[0] in cached:
                cached[value[0]].outputs[value[1]]
            else:
                left.append(value[0])
