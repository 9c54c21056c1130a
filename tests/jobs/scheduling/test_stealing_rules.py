"""Rules of work stealing, and room for other tenants."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.scheduling.stealing_rules import GAIN, Stuck, leaves_room, steal_work, steals


def test_the_last_slot_is_left_for_others() -> None:
    assert [leaves_room(free, 16) for free in (2, 1, 0)] == [True, False, False]
    assert leaves_room(1, 1)


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


def test_learned_times_of_a_job_count_more_than_those_of_usual_jobs() -> None:
    long = replace(stuck(1, ends_in=30.0), seconds={"slow": 100.0})
    assert steal_work({"slow": 5.0}, [long]) is None
    assert steal_work({"slow": 50.0}, [replace(long, seconds={"slow": 10.0})]) is not None
    # A backend without a learned time was not idle when the times were taken.
    assert steal_work({"other": 1.0}, [long]) is None


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


def test_all_idle_backends_get_jobs_in_one_look() -> None:
    """The same as if each was looked at anew, but in one pass: hundreds of backends may come back at once."""
    jobs = [stuck(n, able=frozenset("ab") if n == 1 else None) for n in range(4)]
    assert list(steals({"a": 1.0, "b": 3.0, "c": 2.0}, jobs)) == [(jobs[0], "a"), (jobs[1], "b"), (jobs[2], "c")]
    assert list(steals({"c": 1.0}, jobs[1:2])) == []
