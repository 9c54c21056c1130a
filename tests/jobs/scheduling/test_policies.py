"""Which backend gets a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.scheduling.policies import GAIN, Candidate, Stuck, shortest_queue, steal_work


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


def stuck(position: int, backend: str = "busy", ends_in: float = 10.0, able: frozenset[str] | None = None) -> Stuck:
    """A job that waits its turn on a backend."""
    return Stuck(position, backend, f"id{position}", ends_in, able)


def test_the_first_in_the_fair_order_that_gains_is_taken_over() -> None:
    jobs = [stuck(2, ends_in=30.0), stuck(1, ends_in=20.0)]
    assert steal_work({"slow": 15.0, "quick": 5.0}, jobs) == (jobs[1], "quick")
    # The next one would end sooner where it is; the one after it would not.
    assert steal_work({"slow": 25.0}, jobs) == (jobs[0], "slow")
    assert steal_work({"slow": 40.0}, jobs) is None
    assert steal_work({}, jobs) is None


def test_a_gain_that_is_not_worth_the_move() -> None:
    assert steal_work({"idle": 9.5}, [stuck(1, ends_in=10.0)]) is None
    assert steal_work({"idle": 8.5}, [stuck(1, ends_in=10.0)]) is not None


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 100), max_size=3),
    st.lists(
        st.builds(
            stuck,
            st.floats(0, 100),
            st.sampled_from("abcd"),
            st.floats(0.1, 100),
            st.none() | st.frozensets(st.sampled_from("abcd")),
        )
    ),
)
def test_whoever_is_moved_can_run_there_and_ends_sooner(idle: dict[str, float], jobs: list[Stuck]) -> None:
    found = steal_work(idle, jobs)
    gaining = [
        (job, name)
        for job in jobs
        for name, seconds in idle.items()
        if name != job.backend and (job.able is None or name in job.able) and seconds < job.ends_in * GAIN
    ]
    assert (found is None) == (gaining == [])
    if found is not None:
        assert found in gaining
        assert found[0].position == min(job.position for job, _ in gaining)
