"""True types of a prompt's links: worked out through switches, lists and other nodes that hand on what they get. Pure.

ComfyUI checks types by declaration, and a MatchType output fits any input (comfy_execution/validation.py), so a text
reaches inputs that take no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.comfy.class_profiles import ANY_TYPE, MATCH_TYPE, ClassProfile

# The type of what a class that the operator trusts hands on.
TRUSTED_ANY = "trusted *"
# A link to a node or an output that is not there.
BROKEN = "broken link"

_Output = tuple[str, int]


def is_link(value: Any) -> bool:
    """Return True if ComfyUI takes a value for a link (comfy_execution/graph_utils.py, is_link)."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def is_plain_link(value: Any) -> bool:
    """Return True for a link as clients write it: ``[node_id, slot]``, with an integer from 0 on as slot.

    ComfyUI also takes -1 for the last output, and True for output 1.
    """
    return is_link(value) and type(value[1]) is int and value[1] >= 0


def unwrapped(value: Any) -> Any:
    """Return a value as ComfyUI unwraps it: the value under ``__value__`` (execution.py, validate_inputs)."""
    return value["__value__"] if isinstance(value, dict) and "__value__" in value else value


class TrueTypes:
    """The true types of one prompt's outputs, each worked out once.

    Args:
        prompt: the graph, nodes by id.
        profiles: the profiles of the nodes' classes, by node id; without the nodes whose class no backend describes.
        trusts: returns True if the operator trusts a class.
    """

    def __init__(
        self,
        prompt: Mapping[str, Any],
        profiles: Mapping[str, ClassProfile],
        trusts: Callable[[ClassProfile], bool],
    ) -> None:
        self._prompt = prompt
        self._profiles = profiles
        self._trusts = trusts
        self._known: dict[_Output, frozenset[str]] = {}

    def has(self, node_id: str) -> bool:
        """Return True if the prompt has a node. The gateway may add others, which are not the client's."""
        return node_id in self._prompt

    def of(self, link: Any) -> frozenset[str]:
        """Return the types that a link may carry. `link` is a plain link.

        A chain of thousands of switches is a legal graph, so this walks without recursion, and each output once. A
        cycle counts as a broken link: ComfyUI refuses it, too.
        """
        start: _Output = (link[0], link[1])
        known = self._known.get(start)
        if known is not None:
            return known
        steps = {start: self._step(start)}
        path = [start]
        while path:
            output = path[-1]
            types, further = steps[output]
            child = further.pop() if further else None
            if child is None:
                path.pop()
                self._known[output] = frozenset(types)
                if path:
                    steps[path[-1]][0].update(types)
            elif child in self._known:
                types |= self._known[child]
            elif child in steps:
                types.add(BROKEN)
            else:
                steps[child] = self._step(child)
                path.append(child)
        return self._known[start]

    def _step(self, output: _Output) -> tuple[set[str], list[_Output]]:
        """Return the types of one output that are known at once, and the outputs whose types it has besides."""
        node_id, slot = output
        profile = self._profiles.get(node_id)
        if profile is None or slot >= len(profile.outputs):
            return {BROKEN}, []
        node = self._prompt[node_id]
        declared, passed = profile.outputs[slot], profile.passes[slot]
        if MATCH_TYPE in declared and passed:
            return self._passed(node.get("inputs"), profile, passed)
        if not declared or declared & {ANY_TYPE, MATCH_TYPE}:
            return {TRUSTED_ANY if self._trusts(profile) else ANY_TYPE}, []
        # A number may be one of the node's own, and so what is linked to that.
        links = self._passed(node.get("inputs"), profile, passed)[1]
        return set(declared), links

    def _passed(self, inputs: Any, profile: ClassProfile, passed: tuple[str, ...]) -> tuple[set[str], list[_Output]]:
        types: set[str] = set()
        further: list[_Output] = []
        for name in passed if isinstance(inputs, dict) else ():
            if name not in inputs:
                continue
            value = unwrapped(inputs[name])
            if is_plain_link(value):
                further.append((value[0], value[1]))
            else:
                types |= _literal_types(value, profile.inputs[name].types)
        return types, further


def _literal_types(value: Any, declared: frozenset[str]) -> frozenset[str]:
    """Return the type of a literal. ComfyUI converts it where one plain type is declared (execution.py)."""
    if len(declared) == 1 and declared <= {"INT", "FLOAT", "STRING", "BOOLEAN"}:
        return declared
    match value:
        case bool():
            return frozenset({"BOOLEAN"})
        case int():
            return frozenset({"INT"})
        case float():
            return frozenset({"FLOAT"})
        case str():
            return frozenset({"STRING"})
        case None:
            return frozenset()
        case _:
            return frozenset({ANY_TYPE})
