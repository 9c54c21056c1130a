"""Signatures by which a node's result is known again (comfy_execution/caching.py, CacheKeySetInputSignature).

A node's signature stands for its class, its inputs and all nodes that it is linked to, however they are numbered.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.true_types import is_link
from gateway.simulator.files import Files

Graph = Mapping[str, Any]
Fingerprint = Callable[[Mapping[str, Any]], Any]
TakesId = Callable[[str], bool]
# Of a node that is linked to itself, or to a node that is not there.
_NEVER_EQUAL = object()
# Integers up to here are exact as floats, so that Python compares both as ComfyUI's keys do.
_MAX_EXACT = 2**53


class Fingerprints:
    """The part of a signature that a class computes itself: of a file's content, or the time (IS_CHANGED)."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._functions: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "LoadImage": lambda inputs: self._content(inputs["image"]),
            "LoadImageMask": lambda inputs: self._content(inputs["image"]),
            "LoadImageOutput": lambda inputs: self._content(inputs["image"]),
            "WebcamCapture": lambda inputs: self._content(inputs["image"]),
            "LoadAudio": lambda inputs: self._content(inputs["audio"]),
            "LoadVideo": lambda inputs: self._path(inputs["file"]).stat().st_mtime,
            "Painter": self._painted,
            "SaveImageWebsocket": lambda _: time.time(),
        }

    def of(self, node: Mapping[str, Any]) -> Any:
        """Return a node's fingerprint; None for most classes. If it can't be computed, the node equals no other."""
        function = self._functions.get(node["class_type"])
        if function is None:
            return None
        try:
            return function(node["inputs"])
        except (AttributeError, LookupError, OSError, TypeError, ValueError):
            return _NEVER_EQUAL

    def _path(self, name: str) -> Path:
        return self._files.path_of(name)

    def _content(self, name: str) -> str:
        return hashlib.sha256(self._path(name).read_bytes()).hexdigest()

    def _painted(self, inputs: Mapping[str, Any]) -> str:
        mask = inputs["mask"]
        return self._content(mask) if mask and mask.strip() and self._path(mask).exists() else ""


def signatures_of(prompt: Graph, fingerprint: Fingerprint, takes_id: TakesId) -> dict[str, str]:
    """Return the signature of each node.

    Args:
        prompt: the graph, nodes by id.
        fingerprint: returns the part of a node's signature that its class computes.
        takes_id: returns True if a class is told the id of its node, which then is part of the signature.
    """
    own = {node_id: _own(node_id, node, fingerprint, takes_id) for node_id, node in prompt.items()}
    found: dict[str, str] = {}
    for node_id in _upwards(prompt):
        inputs = own[node_id]
        sources = {name: value[0] for name, value in prompt[node_id]["inputs"].items() if is_link(value)}
        if inputs is None or any(source not in found for source in sources.values()):
            found[node_id] = _unique(node_id)
        else:
            found[node_id] = _digest([inputs, {name: found[source] for name, source in sources.items()}])
    return _told_apart(prompt, found)


def _own(node_id: str, node: Mapping[str, Any], fingerprint: Fingerprint, takes_id: TakesId) -> list[Any] | None:
    """Return what a node's signature has of the node itself; None if it equals no other node."""
    mark = fingerprint(node)
    if mark is _NEVER_EQUAL:
        return None
    id_ = node_id if takes_id(node["class_type"]) else None
    inputs = {k: ["ANCESTOR", _plain(v[1])] if is_link(v) else _plain(v) for k, v in node["inputs"].items()}
    return [node["class_type"], mark, id_, inputs]


def _plain(value: Any) -> Any:
    """Return a value in a form that is the same for values that Python calls equal: True, 1 and 1.0."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _digest(value: Any) -> str:
    return hashlib.blake2b(json_codec.dumps_sorted(value), digest_size=32).hexdigest()


def _unique(node_id: str) -> str:
    return f"unique {node_id} {time.monotonic_ns()}"


def _upwards(prompt: Graph) -> Iterator[str]:
    """Yield all nodes, each after the nodes that it is linked to, but for those in a cycle."""
    done: set[str] = set()
    for start in prompt:
        path = [(start, _sources(prompt, start))] if start not in done else []
        on_path = {start}
        while path:
            node_id, sources = path[-1]
            source = next((each for each in sources if each not in done and each not in on_path), None)
            if source is None:
                path.pop()
                on_path.discard(node_id)
                done.add(node_id)
                yield node_id
            else:
                path.append((source, _sources(prompt, source)))
                on_path.add(source)


def _sources(prompt: Graph, node_id: str) -> Iterator[str]:
    return (value[0] for value in prompt[node_id]["inputs"].values() if is_link(value) and value[0] in prompt)


def _told_apart(prompt: Graph, signatures: dict[str, str]) -> dict[str, str]:
    """Return signatures that also tell one node that is used twice from two equal nodes, as ComfyUI's do.

    Only a node with equal nodes among those that it is linked to needs another one.
    """
    if len(set(signatures.values())) == len(signatures):
        return signatures
    found = {}
    for node_id, signature in signatures.items():
        ancestors = _ancestors(prompt, node_id)
        counts = Counter(signatures[each] for each in ancestors)
        if len(counts) == len(ancestors):
            found[node_id] = signature
            continue
        numbers = {each: number for number, each in enumerate(ancestors)}
        links = [
            {name: numbers[v[0]] for name, v in prompt[each]["inputs"].items() if is_link(v)}
            for each in (node_id, *ancestors)
        ]
        found[node_id] = _digest([signature, links])
    return found


def _ancestors(prompt: Graph, node_id: str) -> list[str]:
    """Return all nodes that a node is linked to, in the order of its inputs' names."""
    found: dict[str, None] = {}
    left = [node_id]
    while left:
        inputs = prompt[left.pop()]["inputs"]
        for name in sorted(inputs, reverse=True):
            value = inputs[name]
            if is_link(value) and value[0] in prompt and value[0] not in found:
                found[value[0]] = None
                left.append(value[0])
    return list(found)
