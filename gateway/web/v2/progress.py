"""Progress of a running job as the Comfy API v2 shows it: by nodes, and by the steps of the node that runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gateway.jobs.state.progress import Progress


def progress_of(
    told: Progress | None,
    nodes: Sequence[tuple[str, str]],
    cached: Collection[str] | None,
    current: str | None,
) -> dict[str, Any]:
    """Return the progress of a job.

    Args:
        told: its progress by its events; None if there were none.
        nodes: the id and the class of each node of the prompt.
        cached: the nodes whose results an earlier prompt left.
        current: the node that runs.
    """
    classes = dict(nodes)
    shares = dict.fromkeys(classes, 0.0)
    states = told.states if told is not None else {}
    for node in (*(cached or ()), *(told.visited if told is not None else ())):
        if node in shares:
            shares[node] = 1.0
    for node, state in states.items():
        if node in shares and isinstance(state, dict):
            shares[node] = _share(state)
    node, step, steps = _step(told, states, current, classes)
    if node is not None and steps and told is not None and node not in states:
        shares[node] = min((step or 0) / steps, 1.0)
    total = len(shares)
    shown: dict[str, Any] = {
        "value": min(round(sum(shares.values()) / total, 4), 1.0) if total else 0.0,
        "nodes_done": sum(share >= 1.0 for share in shares.values()),
        "nodes_total": total,
        "current_node": node,
        "current_node_class": classes.get(node) if node is not None else None,
        "step": step,
        "steps": steps,
    }
    return shown


def _step(
    told: Progress | None, states: Mapping[str, Any], current: str | None, classes: Mapping[str, str]
) -> tuple[str | None, int | None, int | None]:
    node = current if current in classes else None
    if node is None:
        running = (name for name, state in states.items() if _is_running(state) and name in classes)
        node = next(running, None)
    if node is None or told is None:
        return node, None, None
    state = states.get(node)
    value, maximum = (state.get("value"), state.get("max")) if isinstance(state, dict) else (None, None)
    if _number(maximum) is None and told.step.get("node") == node:
        value, maximum = told.step.get("value"), told.step.get("max")
    done, total = _number(value), _number(maximum)
    if done is not None and total is not None and total > 0:
        return node, max(int(min(done, total)), 0), math.ceil(total)
    return node, None, None


def _is_running(state: Any) -> bool:
    return isinstance(state, dict) and state.get("state") == "running"


def _share(state: Mapping[str, Any]) -> float:
    if state.get("state") == "finished":
        return 1.0
    value, maximum = state.get("value"), state.get("max")
    # A node that runs has not ended, whatever its steps say.
    done, total = _number(value), _number(maximum)
    return max(min(done / total, 0.99), 0.0) if done is not None and total is not None and total > 0 else 0.0


def _number(value: Any) -> float | None:
    """Return a number that a backend sent; None if it is none, or is beyond what a float holds exactly."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 2**53 else None
