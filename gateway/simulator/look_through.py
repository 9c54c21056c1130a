"""The executor's look through a prompt before its first node (comfy_execution/caching.py and graph.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gateway.comfy.true_types import is_link
from gateway.simulator.values import Result

# Python's limit for recursion is 1000 calls; some are ComfyUI's before it comes to this.
_MAX_DEPTH = 970


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
            if len(prompt) > _MAX_DEPTH:
                _ancestry(prompt, node_id)
        _follow(prompt, outputs, cached)
    except (LookupError, RecursionError, TypeError) as error:
        raise WorkerEnded(repr(error)) from error


def _ancestry(prompt: Mapping[str, Any], node_id: str) -> None:
    """Visit what a node is linked to, in the order of ComfyUI's recursion (caching.py, get_ordered_ancestry_internal).

    Raises:
        RecursionError: the recursion would be too deep for Python.
    """
    known = set[str]()
    left = [_sources(prompt, node_id)]
    while left:
        source = next((each for each in left[-1] if each not in known), None)
        if source is None:
            left.pop()
            continue
        known.add(source)
        left.append(_sources(prompt, source))
        if len(left) > _MAX_DEPTH:
            raise RecursionError("maximum recursion depth exceeded")


def _sources(prompt: Mapping[str, Any], node_id: str) -> Iterator[str]:
    values = prompt[node_id]["inputs"].values()
    return (value[0] for value in values if is_link(value) and value[0] in prompt)


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
