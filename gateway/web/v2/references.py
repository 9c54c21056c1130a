"""References to assets in a graph: ``{"__type": "core/ASSET", "info": {…}}`` becomes a file's name. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

TYPE, TAG = "__type", "core/ASSET"
# A JSON encoder may write the slash with a backslash before it, and any character by its number.
_SPELLINGS = (b'core/ASSET"', b'core\\/ASSET"')
_NUMBERED = re.compile(b"\\\\u00(?:" + b"|".join(b"%02x" % each for each in sorted(set(TAG.encode()))) + b")", re.I)
# Deeper values are not looked at. Nodes' inputs are hardly nested.
MAX_DEPTH = 64
# Values after which others have their turn.
STEP = 500
MAX_MISSING = 50


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to an asset: its id, and a hint, which never overrides the id. Either may be empty."""

    id: str
    hash: str


# Returns the value that stands for a reference in a graph, None if the reference leads to nothing of the caller's.
Resolve = Callable[[Reference], str | None]


def may_hold_references(graph: bytes) -> bool:
    """Return True if an encoded graph may hold a reference."""
    return any(spelling in graph for spelling in _SPELLINGS) or _NUMBERED.search(graph) is not None


def references_in(graph: Any) -> Generator[None, None, list[Reference | str]]:
    """Find the references of a graph, in steps. A malformed one is a text that tells the fault."""
    found: list[Reference | str] = []
    yield from _walk(graph, lambda value: found.append(_parsed(value)), _State())
    return found


def resolving(graph: Any, resolve: Resolve) -> Generator[None, None, list[str]]:
    """Put what references stand for in their place, in steps. Return the names of those that lead to nothing.

    The graph is changed.
    """
    missing: list[str] = []

    def put(value: dict[str, Any]) -> str | None:
        reference = _parsed(value)
        resolved = resolve(reference) if isinstance(reference, Reference) else None
        if resolved is None and len(missing) < MAX_MISSING:
            missing.append(reference if isinstance(reference, str) else reference.id or reference.hash)
        return resolved

    yield from _walk(graph, put, _State())
    return missing


class _State:
    """Number of values that were looked at."""

    def __init__(self) -> None:
        self.looked = 0


def _walk(
    value: Any, put: Callable[[dict[str, Any]], str | None], state: _State, depth: int = 0
) -> Generator[None, None, None]:
    if depth > MAX_DEPTH or not isinstance(value, (dict, list)):
        return
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        state.looked += 1
        if state.looked % STEP == 0:
            yield
        if isinstance(item, dict) and item.get(TYPE) == TAG:
            resolved = put(item)
            if resolved is not None:
                value[key] = resolved
        elif isinstance(item, (dict, list)):
            yield from _walk(item, put, state, depth + 1)


def _parsed(value: dict[str, Any]) -> Reference | str:
    info = value.get("info")
    if not isinstance(info, dict):
        return "<malformed core/ASSET: missing info>"
    id_, hash_ = info.get("id"), info.get("hash")
    if not all(each is None or isinstance(each, str) for each in (id_, hash_)):
        return "<malformed core/ASSET: an id or a hash that is no text>"
    if not id_ and not hash_:
        return "<no id>"
    return Reference((id_ or "")[:300], (hash_ or "")[:100])
