"""Packs of node classes that isolated tenants may use only if the operator trusts them. Pure.

A pack is a custom node's folder. A module of ComfyUI's own is one as well, if it has classes that nobody has reviewed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.comfy.class_profiles import profile_of
from gateway.comfy.node_review import Review, is_stock, pack_of

# A backend chooses the names and the number of its packs and classes.
MAX_PACKS = 1_000
MAX_NAMED_CLASSES = 100
# The longest pattern that the setting takes.
MAX_PATTERN = 256
# Bounds of one log line.
MAX_LOGGED_PACKS = 50
MAX_LOGGED_NAME = 100
MAX_LOGGED_HINT = 2_000
_GLOB = re.compile(r"([*?[])")


@dataclass(slots=True)
class Pack:
    """A pack, as all backends together describe it.

    Attributes:
        classes: the names of its classes.
        untrusted: the classes that need the operator's trust and don't have it.
        backends: the backends that have the pack.
    """

    name: str
    is_stock: bool
    classes: set[str] = field(default_factory=set)
    untrusted: set[str] = field(default_factory=set)
    backends: set[str] = field(default_factory=set)

    def describe(self) -> dict[str, Any]:
        """Return the pack's description for the admin API."""
        return {
            "pack": self.name,
            "classes": len(self.classes),
            "untrusted_classes": len(self.untrusted),
            "untrusted": sorted(self.untrusted)[:MAX_NAMED_CLASSES],
            "backends": sorted(self.backends),
        }


def packs_of(infos: Mapping[str, Mapping[str, Any]], trusts: Callable[[str, str], bool], review: Review) -> list[Pack]:
    """Return the packs of custom nodes, and of ComfyUI's own those with untrusted classes; the latter kind first.

    Args:
        infos: by backend, its /object_info. A class whose description can't be read needs trust.
        trusts: returns True if the operator trusts a class, given with its pack.
    """
    found: dict[str, Pack] = {}
    for backend, info in infos.items():
        for name, description in info.items():
            module = str(description.get("python_module") or "") if isinstance(description, Mapping) else ""
            pack = found.get(pack_of(module))
            if pack is None:
                if len(found) >= MAX_PACKS:
                    continue
                pack = found[pack_of(module)] = Pack(pack_of(module), is_stock(module))
            pack.classes.add(name)
            pack.backends.add(backend)
            if _needs_trust(name, description, review) and not trusts(name, pack.name):
                pack.untrusted.add(name)
    shown = (pack for pack in found.values() if pack.untrusted or not pack.is_stock)
    return sorted(shown, key=lambda pack: (not pack.untrusted, pack.name))


def _needs_trust(name: str, description: Any, review: Review) -> bool:
    try:
        return profile_of(name, description, review).needs_trust
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return True


def untrusted(packs: Iterable[Pack]) -> list[Pack]:
    """Return the packs with classes that need the operator's trust and don't have it."""
    return [pack for pack in packs if pack.untrusted]


def line_to_paste(packs: Iterable[Pack], trusted: Collection[str]) -> str:
    """Return the setting that trusts these packs beside the `trusted` ones."""
    patterns = [*trusted, *(pattern for pattern in _patterns(packs) if pattern not in trusted)]
    # In the configuration a dollar sign begins a variable.
    shown = ", ".join(json.dumps(pattern, ensure_ascii=False).replace("$", "$$") for pattern in patterns)
    return f"tenants: {{default: {{nodes: {{trust: [{shown}]}}}}}}"


def log_fields(found: Sequence[Pack], trusted: Collection[str]) -> dict[str, Any]:
    """Return the fields of the log line about untrusted packs, bounded whatever a backend calls its packs."""
    hint = f"isolated tenants get 400 for these classes; to trust all of them: {line_to_paste(found, trusted)}"
    if len(hint) > MAX_LOGGED_HINT:
        hint = (
            "isolated tenants get 400 for these classes; GET /gateway/packs shows the setting that trusts all of them"
        )
    return {
        "packs": [pack.name[:MAX_LOGGED_NAME] for pack in found[:MAX_LOGGED_PACKS]],
        "packs_count": len(found),
        "classes": sum(len(pack.untrusted) for pack in found),
        "hint": hint,
    }


def _patterns(packs: Iterable[Pack]) -> Iterator[str]:
    """Yield for each pack the pattern that fits its name alone. Nobody can name a pack without a printable name."""
    for pack in packs:
        pattern = _GLOB.sub(r"[\1]", pack.name)
        if pattern.isprintable() and 0 < len(pattern) <= MAX_PATTERN:
            yield pattern
