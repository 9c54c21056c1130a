"""Which backend gets a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.routing import Candidate, shortest_queue


def c(name: str, pending: int = 0, running: int = 0, free: int = 16, **more: object) -> Candidate:
    """A candidate."""
    return Candidate(name, pending, running, free, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([], None),
        ([c("a", free=0)], None),
        ([c("a", 3), c("b", 1), c("c", 2)], "b"),
        ([c("a", 1, free=0), c("b", 9)], "b"),
        ([c("a", running=1), c("b")], "b"),
        ([c("a", used_at=1.0), c("b", warm=1, used_at=9.0)], "b"),
        ([c("a", used_at=5.0), c("b", used_at=2.0)], "b"),
        ([c("a", running=0, used_at=9.0), c("b", running=1, warm=3)], "a"),
        ([c("a", slow=True), c("b", 15)], "b"),
        ([c("a", slow=True), c("b", free=0)], "a"),
    ],
)
def test_choice(candidates: list[Candidate], chosen: str | None) -> None:
    found = shortest_queue(candidates)
    assert (found.name if found else None) == chosen


@given(
    st.lists(st.builds(Candidate, st.text(), st.integers(0, 50), st.integers(0, 2), st.integers(-1, 16), st.booleans()))
)
def test_it_never_takes_a_full_one_nor_a_longer_queue(candidates: list[Candidate]) -> None:
    found = shortest_queue(candidates)
    able = [x for x in candidates if x.free > 0]
    if not able:
        assert found is None
        return
    assert found is not None
    assert found.free > 0
    awake = [x for x in able if not x.slow] or able
    assert found.pending == min(x.pending for x in awake)


def test_a_burst_is_spread_by_reservations() -> None:
    pending = {"a": 0, "b": 0, "c": 0}
    for turn in range(60):
        found = shortest_queue(c(name, count, used_at=float(turn)) for name, count in pending.items())
        assert found is not None
        pending[found.name] += 1
    assert set(pending.values()) == {20}
