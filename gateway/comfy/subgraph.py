"""Digests of the parts of a graph that nodes depend on. Pure.

Equal parts have equal digests, whatever the ids of their nodes. ComfyUI's cache compares the same
(comfy_execution/caching.py, CacheKeySetInputSignature): a node's signature lists its ancestors in the order in which
their links lead to them, and names each by its place in that list. So a node that ComfyUI need not run again keeps its
digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import orjson

from gateway.comfy.true_types import is_link, unwrapped

# The inputs that are looked at for all digests of a prompt. Thousands of savers behind thousands of nodes take more.
_LOOKS, _LOOKS_PER_NODE = 10_000, 10
# Longer texts count by their digests, because each saver behind one would read it again.
MAX_TEXT = 1_000
# From 2,048 bytes on hashlib gives the interpreter to other threads.
_HASHED_AT_ONCE = 2_047
# A link of a node: the name of the input, the source, the slot.
Link = tuple[str, str, Any]
# A node's class, its inputs without unusual values, and its links in the order of their names.
OpenedNode = tuple[Any, dict[str, Any], list[Link]]
_MISSING: OpenedNode = (None, {}, [])


def digests(
    prompt: Mapping[str, Any],
    wanted: Iterable[str],
    opened: dict[str, OpenedNode] | None = None,
    *,
    is_plain: bool = False,
) -> dict[str, bytes]:
    """Return the digest of each wanted node: of its class, its literals, and those of all nodes that it depends on.

    The order of keys, the ids of nodes and `_meta` change nothing. 1, 1.0, true and "1" are four literals. A value
    under ``__value__`` counts as the value itself, because ComfyUI unwraps it. A cycle, and a link to no node, have
    digests as well: ComfyUI refuses both.

    If a graph takes too long, the digests of the last nodes are of the whole prompt and the node's id.

    `prompt` is JSON of a bounded depth (`gateway.comfy.json_codec.read_bounded`). `opened` are nodes of it that a
    caller has taken apart: all their inputs are plain links, numbers, null, and texts of `MAX_TEXT` characters at most.
    More are added. `is_plain`: no number is NaN or infinite.
    """
    found: dict[str, bytes] = {}
    opened = {} if opened is None else opened
    left = _LOOKS + _LOOKS_PER_NODE * len(prompt)
    whole = b""
    for node_id in wanted:
        rows: list[Any] = []
        left -= _collect(prompt, node_id, opened, left, rows)
        if left >= 0:
            found[node_id] = _digest(rows, is_plain=is_plain)
        else:
            whole = whole or _digest(prompt)
            found[node_id] = _digest([whole.hex(), node_id])
    return found


def _collect(
    prompt: Mapping[str, Any], start: str, opened: dict[str, OpenedNode], maximum: int, rows: list[Any]
) -> int:
    """Collect the class and inputs of a node and of all that it depends on; return how many inputs were looked at.

    A link is the place of its source in this list, and the slot. If there are more inputs than `maximum`, this stops.
    """
    places = {start: 0}
    order = [start]
    looks = 0
    for node_id in order:
        if looks > maximum:
            break
        node = opened.get(node_id)
        if node is None:
            node = opened[node_id] = _opened(prompt.get(node_id))
        class_type, inputs, links = node
        looks += 1 + len(inputs)
        if links:
            inputs = inputs.copy()
            for name, source, slot in links:
                place = places.get(source)
                if place is None:
                    place = places[source] = len(order)
                    order.append(source)
                inputs[name] = (place, slot)
        rows.append((class_type, inputs))
    return looks


def _opened(node: Any) -> OpenedNode:
    """Take a node apart."""
    given = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(given, dict):
        return (node.get("class_type"), {}, []) if isinstance(node, dict) else _MISSING
    inputs: dict[str, Any] = given
    links: list[tuple[str, str, Any]] = []
    # Most inputs are texts, numbers and links, so this looks at no more than it must.
    for name, value in given.items():
        kind = type(value)
        if kind is int or kind is float or (kind is str and len(value) <= MAX_TEXT):
            continue
        if kind is list and len(value) == 2:
            source, slot = value
            if type(source) is str and type(slot) is int:
                links.append((name, source, slot))
                continue
        counted = unwrapped(value)
        if is_link(counted):
            links.append((name, *counted))
            continue
        if isinstance(counted, (str, list, dict)) and not (isinstance(counted, str) and len(counted) <= MAX_TEXT):
            counted = _digest([counted]).hex()
        if counted is not value:
            inputs = inputs.copy() if inputs is given else inputs
            inputs[name] = counted
    if len(links) > 1:
        # No two have one name, so their sources are never compared.
        links.sort()
    return node.get("class_type"), inputs, links


def _digest(value: Any, *, is_plain: bool = False) -> bytes:
    data, hash_ = _encoded(value, is_plain), sha256()
    # Not all at once, because hashlib would then let another thread run. To wait for the journal's takes many times as
    # long as to hash the inputs of fifty nodes.
    for start in range(0, len(data), _HASHED_AT_ONCE):
        hash_.update(data[start : start + _HASHED_AT_ONCE])
    return hash_.digest()


def _encoded(value: Any, is_plain: bool) -> bytes:
    """Encode a value so that no other value has the same bytes, and the order of keys does not matter.

    orjson writes null for NaN and Infinity, and refuses a long integer and half a surrogate pair. To look for null in
    10 KB takes longer than to hash them, so nobody looks if no number is one of those (`is_plain`).
    """
    try:
        data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()
    return data if is_plain or b"null" not in data else json.dumps(value, sort_keys=True).encode()
