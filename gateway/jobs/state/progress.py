"""The progress of a job that its client knows, so that a second run does not move its bar backwards. Pure.

A job whose backend is lost runs again from its beginning. A client that is told of one prompt at a time must not see
that, because for it the job runs on. Frames that repeat the run before are marked (`Frame.repeats`) and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gateway.comfy.events import Event, encode

# Maximum number of nodes remembered for a job, because a backend may name more nodes than the prompt has.
MAX_NODES = 4096


class Progress:
    """Progress of a job by its events, over all of its runs.

    Until a run comes to nothing this costs little: the last event of each kind is kept as it is.
    """

    def __init__(self) -> None:
        self._nodes: set[str] = set()
        self._latest: str | None = None
        self._step: Mapping[str, Any] = {}
        self._states: Any = None
        # From earlier runs: the nodes that the client knows, the last of them, its progress, and all nodes' states.
        self._before: frozenset[str] = frozenset()
        self._reached: str | None = None
        self._share = -1.0
        self._known: dict[str, float] | None = None
        # States of nodes that this run skips, because their results are cached: no ``progress_state`` names them.
        self._done: dict[str, dict[str, Any]] = {}
        self.is_again = False
        self.is_behind = False

    def run_again(self) -> None:
        """Note that the run came to nothing: from now on the job's events may repeat earlier ones."""
        if self._step.get("node") == self._latest:
            self._share = _share(self._step)
        elif self._reached != self._latest:
            self._share = -1.0
        self._before, self._reached = frozenset(self._nodes), self._latest
        states = _shares(self._states) if isinstance(self._states, dict) else {}
        self._known = {**(self._known or {}), **states} or None
        self._done = {}
        self.is_again, self.is_behind = True, bool(self._before)

    def cached_again(self, nodes: Iterable[str]) -> None:
        """Note the nodes whose results the later run's backend has already, because ComfyUI does not visit them."""
        states = self._states if isinstance(self._states, dict) else {}
        for node in nodes:
            if self._known is not None and self._known.pop(node, None) is not None:
                state = states.get(node)
                if isinstance(state, dict):
                    self._done[node] = {**state, "value": state.get("max", 1), "state": "finished"}

    def completed(self, event: Event) -> Event:
        """Return a ``progress_state`` with the nodes that an earlier run finished added; other events as they are."""
        states = event.data.get("nodes")
        if not self._done or event.type != "progress_state" or not isinstance(states, dict):
            return event
        place = {"prompt_id": event.data.get("prompt_id")}
        data = {**event.data, "nodes": {**{node: {**state, **place} for node, state in self._done.items()}, **states}}
        return replace(event, data=data, raw=encode(event.type, data))

    def repeats(self, event: Event) -> bool:
        """Return True if an event says nothing new after an earlier run. Else note the event."""
        type_, data = event.type, event.data
        if type_ == "progress":
            if self.is_again and self._is_no_step_on(data):
                return True
            self._step = data
        elif type_ == "progress_state":
            if self._known is not None and self._are_behind(data.get("nodes")):
                return True
            self._states = data.get("nodes")
        elif type_ == "executing":
            node = data.get("node")
            self.is_behind = isinstance(node, str) and node in self._before
            if isinstance(node, str) and not self.is_behind:
                self._latest = node
                self._note([node])
            return self.is_behind
        elif type_ == "execution_cached":
            self._note(node for node in data.get("nodes", ()) if isinstance(node, str))
        return False

    @property
    def states(self) -> Mapping[str, Any]:
        """Return the states of nodes in the last ``progress_state``; empty if there was none."""
        return self._states if isinstance(self._states, dict) else {}

    @property
    def step(self) -> Mapping[str, Any]:
        """Return the data of the last ``progress``; empty if there was none."""
        return self._step

    @property
    def visited(self) -> frozenset[str]:
        """Return the nodes that were executed or cached, without the one that was last."""
        return frozenset(self._nodes) - {self._latest}

    def _note(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            if len(self._nodes) < MAX_NODES:
                self._nodes.add(node)

    def _is_no_step_on(self, data: Mapping[str, Any]) -> bool:
        node = data.get("node")
        if isinstance(node, str) and node in self._before:
            share = _share(data)
            self.is_behind = node != self._reached or share <= self._share
            if not self.is_behind:
                self._share = share
        return self.is_behind

    def _are_behind(self, states: Any) -> bool:
        if not isinstance(states, dict) or self._known is None:
            return False
        shares = _shares(states)
        if any(shares.get(node, -1.0) < share for node, share in self._known.items()):
            return True
        self._known = None
        return False


def _shares(states: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of each node's work that is done, from ``nodes`` of a ``progress_state`` (progress.py)."""
    return {node: _share(state) for node, state in states.items() if isinstance(state, dict)}


def _share(state: Mapping[str, Any]) -> float:
    if state.get("state") == "finished":
        return 1.0
    value, maximum = state.get("value"), state.get("max")
    if not isinstance(value, int | float) or not isinstance(maximum, int | float) or maximum <= 0:
        return 0.0
    return min(value / maximum, 1.0)
