"""The progress of a job that its client knows, so that a second run does not move its bar backwards. Pure.

A job whose backend is lost runs again from its beginning. A client that is told of one prompt at a time must not see
that, because for it the job runs on: what repeats the run before is marked (`Frame.repeats`) and left out for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.comfy.events import Event

# Nodes whose progress is remembered of a job. A prompt may have fewer, and a backend may name what it likes.
MAX_NODES = 4096


class Progress:
    """What a job's events have said of its progress, over all of its runs."""

    def __init__(self) -> None:
        self._nodes: set[str] = set()
        self._shares: dict[str, float] = {}
        self._states: Mapping[str, Any] = {}
        self._known: dict[str, float] | None = None
        self._before: frozenset[str] = frozenset()
        self._latest: str | None = None
        self._reached: str | None = None
        self.is_behind = False

    def run_again(self) -> None:
        """Note that the run came to nothing: from now on the job's events may repeat what was said."""
        self._before = frozenset(self._nodes)
        self._reached = self._latest
        self._known = {**(self._known or {}), **_shares(self._states)} or None
        self.is_behind = bool(self._before)

    def repeats(self, event: Event) -> bool:
        """Return True if an event says nothing beyond what an earlier run has said. Note what it says, else."""
        match event.type:
            case "executing":
                node = event.data.get("node")
                self.is_behind = isinstance(node, str) and node in self._before
                if isinstance(node, str) and not self.is_behind:
                    self._latest = node
                    self._note([node])
                return self.is_behind
            case "execution_cached":
                self._note(node for node in event.data.get("nodes", ()) if isinstance(node, str))
                return False
            case "progress":
                return self._repeats_step(event.data)
            case "progress_state":
                return self._repeats_states(event.data.get("nodes"))
            case _:
                return False

    def _note(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            if len(self._nodes) < MAX_NODES:
                self._nodes.add(node)

    def _repeats_step(self, data: Mapping[str, Any]) -> bool:
        node, share = data.get("node"), _share(data)
        if not isinstance(node, str):
            return self.is_behind
        if node in self._before:
            self.is_behind = node != self._reached or share <= self._shares.get(node, -1.0)
        if not self.is_behind and (len(self._shares) < MAX_NODES or node in self._shares):
            self._shares[node] = share
        return self.is_behind

    def _repeats_states(self, states: Any) -> bool:
        if not isinstance(states, dict):
            return False
        if self._known is not None:
            shares = _shares(states)
            if any(shares.get(node, -1.0) < share for node, share in self._known.items()):
                return True
            self._known = None
        self._states = states
        return False


def _shares(states: Mapping[str, Any]) -> dict[str, float]:
    """Return how much of each node's work is done, from the ``nodes`` of a ``progress_state`` (progress.py)."""
    return {node: _share(state) for node, state in states.items() if isinstance(state, dict)}


def _share(state: Mapping[str, Any]) -> float:
    if state.get("state") == "finished":
        return 1.0
    value, most = state.get("value"), state.get("max")
    if not isinstance(value, int | float) or not isinstance(most, int | float) or most <= 0:
        return 0.0
    return min(value / most, 1.0)
