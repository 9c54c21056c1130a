"""Digests of the parts of a graph that nodes depend on. Pure.

Equal parts have equal digests, whatever the ids of their nodes. ComfyUI's cache compares the same
(comfy_execution/caching.py, CacheKeySetInputSignature), so a node that it need not run again keeps its digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import orjson

from gateway.comfy.true_types import is_link, unwrapped

DIGEST_SIZE = 32
# The digest of a node that is not there, and of the source of a link that closes a cycle. ComfyUI refuses both.
_ABSENT = "0" * (2 * DIGEST_SIZE)


def digests(prompt: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the digest of each wanted node: of its class, its literals, and the digests and slots that it links to.

    The order of keys, the ids of nodes and `_meta` change nothing. 1, 1.0, true and "1" are four literals. A value
    under ``__value__`` counts as the value itself, because ComfyUI unwraps it.

    A chain of thousands of nodes is a legal graph, so this walks without recursion, and each node once. `prompt` is
    JSON of a bounded depth (`gateway.comfy.wire.read_bounded`).
    """
    wanted = list(wanted)
    known: dict[str, str] = {}
    opened: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for start in wanted:
        path = [start]
        while path:
            node_id = path[-1]
            if node_id in known:
                path.pop()
                continue
            node = prompt.get(node_id)
            if not isinstance(node, dict):
                known[node_id] = _ABSENT
                continue
            parts = opened.get(node_id)
            if parts is None:
                parts = opened[node_id] = _parted(node.get("inputs"))
                further = [link[0] for link in parts[1].values() if link[0] not in known]
                if further:
                    path += further
                    continue
            # If a node comes up again before its sources are known, it is in a cycle.
            literals, links = parts
            linked = {name: [known.get(link[0], _ABSENT), link[1]] for name, link in links.items()}
            known[node_id] = _digest([node.get("class_type"), literals, linked])
    return {node_id: bytes.fromhex(known[node_id]) for node_id in wanted}


def _parted(inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the literals and the links of a node."""
    literals: dict[str, Any] = {}
    links: dict[str, Any] = {}
    for name, raw in inputs.items() if isinstance(inputs, dict) else ():
        value = unwrapped(raw)
        if type(value) is list and is_link(value):
            links[name] = value
        else:
            literals[name] = value
    return literals, links


def _digest(value: Any) -> str:
    return blake2b(_encoded(value), digest_size=DIGEST_SIZE).hexdigest()


def _encoded(value: Any) -> bytes:
    """Encode a value so that no other value has the same bytes, and the order of keys does not matter.

    orjson writes null for NaN and Infinity, and refuses a long integer and half a surrogate pair.
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()
    return data if b"null" not in data else json.dumps(value, sort_keys=True).encode()
