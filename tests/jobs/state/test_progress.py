"""A bar does not move backwards when a job runs a second time."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.events import Event
from gateway.jobs.state.progress import MAX_NODES, Progress


def event(type_: str, **data: Any) -> Event:
    """An event of a run."""
    return Event(type_, data, "A", b"")


def run(steps: dict[str, int], cached: frozenset[str] = frozenset()) -> list[Event]:
    """What a backend says of a run: nodes in order, each with so many steps."""
    said = [event("execution_cached", nodes=sorted(cached))]
    states: dict[str, dict[str, Any]] = {}
    for node, count in steps.items():
        if node in cached:
            continue
        said.append(event("executing", node=node))
        for step in range(count + 1):
            states[node] = {"value": step, "max": count or 1, "state": "running"}
            said.append(event("progress_state", nodes={key: dict(state) for key, state in states.items()}))
            if count:
                said.append(event("progress", node=node, value=step, max=count))
        states[node] = {"value": 1, "max": 1, "state": "finished"}
        said.append(event("progress_state", nodes={key: dict(state) for key, state in states.items()}))
    return said


def heights(told: list[Event], order: list[str]) -> tuple[list[tuple[int, float]], list[float]]:
    """How far a client's two bars are at each event: node and share of it, and the sum of all shares."""
    bar: list[tuple[int, float]] = []
    sums: list[float] = []
    for each in told:
        if each.type == "executing":
            bar.append((order.index(each.data["node"]), 0.0))
        elif each.type == "progress":
            bar.append((order.index(each.data["node"]), each.data["value"] / each.data["max"]))
        elif each.type == "progress_state":
            states = each.data["nodes"].values()
            sums.append(sum(1.0 if one["state"] == "finished" else one["value"] / one["max"] for one in states))
    return bar, sums


NODES = [str(n) for n in range(6)]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 60), st.frozensets(st.sampled_from(NODES))), min_size=1, max_size=3),
    st.frozensets(st.sampled_from(NODES)),
)
def test_no_bar_moves_backwards(
    counts: list[int], lost: list[tuple[int, frozenset[str]]], last_cached: frozenset[str]
) -> None:
    """Runs are cut short after so many events; which nodes are cached differs from backend to backend."""
    steps = dict(zip(NODES, counts, strict=False))
    order, progress, told = list(steps), Progress(), []
    for n, (cut, cached) in enumerate(lost):
        told += relayed(progress, run(steps, cached & set(order))[:cut], is_again=n > 0)
        progress.run_again()
    last = relayed(progress, run(steps, last_cached & set(order)), is_again=True)
    bar, sums = heights([*told, *last], order)
    assert all(a <= b for a, b in itertools.pairwise(bar))
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(sums))
    # The last run is told to its end, if it has anything to do.
    if set(order) - last_cached:
        assert any(each.type == "progress_state" for each in last) or not told
        assert sums[-1] >= len(set(order) - last_cached)


def relayed(progress: Progress, said: list[Event], *, is_again: bool) -> list[Event]:
    """What a client is told, as jobs/lifecycle/event_relay.py does it."""
    told = []
    for each in said:
        if each.type == "execution_cached" and is_again:
            progress.cached_again(each.data["nodes"])
            continue
        each = progress.completed(each)
        if not progress.repeats(each):
            told.append(each)
    return told


def test_a_first_run_is_told_as_it_is() -> None:
    progress = Progress()
    twice = [event("progress", node="1", value=value, max=4) for value in (1, 4, 1, 4)]
    assert not any(progress.repeats(each) for each in [event("executing", node="1"), *twice])


def test_odd_values_do_no_harm() -> None:
    progress = Progress()
    for _ in range(2):
        for data in (
            {},
            {"value": "x", "max": 0},
            {"value": float("nan"), "max": 1},
            {"value": 1, "max": float("inf")},
        ):
            progress.repeats(event("progress", node="1", **data))
            progress.repeats(event("progress_state", nodes={"1": data, "2": 5}))
        progress.repeats(event("progress_state", nodes=None))
        progress.repeats(event("executing", node=None))
        progress.run_again()


def test_what_is_remembered_is_bounded() -> None:
    progress = Progress()
    for n in range(MAX_NODES + 5):
        progress.repeats(event("executing", node=str(n)))
        progress.repeats(event("progress", node=str(n), value=1, max=2))
    assert len(progress._nodes) == MAX_NODES
