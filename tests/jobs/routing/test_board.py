"""The board that policies choose from, and slots."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.routing.snapshot import (
    BIND_AHEAD_SECONDS,
    MAX_FASTEST,
    MAX_HOLDERS,
    MAX_OPEN,
    MAX_SOON,
    BackendView,
    Board,
    open_slots,
)


def test_slots() -> None:
    assert open_slots(0.0, -1.0, 0, 1, True) == 1
    # A backend gets its next job shortly before its running one ends, and no more than that.
    assert open_slots(0.0, 100.0, 1, 1, False) == 0
    assert open_slots(0.0, BIND_AHEAD_SECONDS, 1, 1, False) == 1
    assert open_slots(0.0, 1.0, 2, 1, False) == 0
    assert open_slots(0.0, 1.0, 2, 2, False) == 1


def test_competitors_are_few_of_many() -> None:
    views = [BackendView(f"open-{n}", 1, 0.0, factor=1.0 + n) for n in range(100)]
    views += [BackendView(f"soon-{n}", 0, 10.0 + n, frozenset({f"m{n % 2}"})) for n in range(100)]
    views += [BackendView("alone", 0, 1e6, frozenset({"rare"}))]
    board = Board(views)
    found = board.competitors(["rare", "m0", "none"], [frozenset({"soon-99"})])
    names = [view.name for view in found.views]
    assert names[:MAX_OPEN] == [f"open-{n}" for n in range(MAX_OPEN)]
    assert {"alone", "soon-99"} <= set(names)
    assert len(names) <= MAX_OPEN + MAX_SOON + 2 * MAX_FASTEST + 3 * MAX_HOLDERS
    # A holder of one model matters for its own jobs alone.
    assert names.index("alone") in found.places["rare"]
    assert names.index("alone") not in found.places["none"]
    assert board.warm_models() == []


_views = st.builds(
    BackendView,
    st.sampled_from("abcdef"),
    st.integers(0, 2),
    st.floats(0, 10),
    st.frozensets(st.sampled_from(["x", "y"])),
    pending=st.integers(0, 3),
    factor=st.sampled_from([0.5, 1.0]),
    weight=st.sampled_from([0.5, 1.0]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(_views, st.sampled_from("abcdef")), max_size=30))
def test_the_board_is_what_was_put_there(steps: list[BackendView | str]) -> None:
    board, expected = Board(), dict[str, BackendView]()
    for step in steps:
        if isinstance(step, str):
            board.remove(step)
            expected.pop(step, None)
        else:
            board.put(step)
            expected[step.name] = step
    assert board.views == expected
    assert {view.name for view in board.open_views()} == {name for name, view in expected.items() if view.slots}
    assert [view.name for view in board.in_queue_order()] == sorted(
        expected,
        key=lambda name: (view := expected[name], view.pending / view.weight, view.running, view.used_at, name)[1:],
    )
    assert {view.name for view in board.holders("x")} == {name for name, view in expected.items() if "x" in view.held}
    assert board.has_open == any(view.slots for view in expected.values())
    found = board.competitors(["x"])
    assert {view.name for view in found.views} == set(expected)
