"""Order of a graph's nodes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gateway.comfy.true_types import is_link


def ordered(prompt: dict[str, Any], outputs: list[str]) -> Iterator[str]:
    """Yield the nodes that the outputs need, each after the nodes that it is linked to."""
    done: set[str] = set()
    for output in outputs:
        stack = [output]
        while stack:
            node_id = stack[-1]
            links = [v[0] for v in prompt[node_id]["inputs"].values() if is_link(v)]
            missing = [link for link in links if link not in done]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if node_id not in done:
                done.add(node_id)
                yield node_id


def pending(prompt: dict[str, Any], outputs: list[str], is_cached: Callable[[str], bool]) -> set[str]:
    """Return the outputs, and all nodes that they need and that are not cached (graph.py, add_node)."""
    found: set[str] = set()
    left = list(outputs)
    while left:
        node_id = left.pop()
        if node_id not in found:
            found.add(node_id)
            links = [v[0] for v in prompt[node_id]["inputs"].values() if is_link(v)]
            left += [link for link in links if not is_cached(link)]
    return found
