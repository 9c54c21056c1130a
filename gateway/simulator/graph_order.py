"""Order of a graph's nodes, and the signatures by which the simulated cache knows them. Pure."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from gateway.comfy import json_codec


def is_link(value: Any) -> bool:
    """Return True if an input is a link to another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


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


def signatures_of(prompt: dict[str, Any]) -> dict[str, str]:
    """Return each node's signature: its class, its inputs, and the signatures of the nodes that it is linked to."""
    found: dict[str, str] = {}
    with contextlib.suppress(KeyError, RecursionError):
        for node_id in ordered(prompt, list(prompt)):
            node = prompt[node_id]
            inputs = {k: ["link", found[v[0]], v[1]] if is_link(v) else v for k, v in node["inputs"].items()}
            found[node_id] = hashlib.blake2b(json_codec.dumps_sorted([node["class_type"], inputs])).hexdigest()
    return found
