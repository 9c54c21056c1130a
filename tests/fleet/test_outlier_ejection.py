"""A backend that fails what others can do gets no work for a while; never the last one, never too many."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.backend import Backend
from gateway.fleet.health import Pulse
from gateway.fleet.outlier_ejection import Ejections
from gateway.fleet.persistence import record_of, restore

NAMES = ("a", "b", "c", "d")


def new(share: float = 0.5) -> Ejections:
    """Four backends, three failures in a row, 10 s at first and 60 s at most."""
    return Ejections(NAMES, 3, 10.0, 60.0, share)


def fail(ejections: Ejections, name: str, now: float, times: int = 3, kind: str = "k") -> float | None:
    """A backend fails in a row while all are up; the last answer."""
    answer = None
    for _ in range(times):
        answer = ejections.failed(name, kind, now, NAMES)
    return answer


def test_failures_in_a_row_of_what_another_can_do() -> None:
    ejections = new()
    ejections.succeeded("b", "k", 0)
    assert fail(ejections, "a", 0, 2) is None
    assert fail(ejections, "a", 0, 1) == 10
    assert ejections.out(NAMES, 9.9) == {"a"}
    assert ejections.out(NAMES, 10) == set()


def test_a_success_in_between_begins_anew() -> None:
    ejections = new()
    ejections.succeeded("b", "k", 0)
    fail(ejections, "a", 0, 2)
    ejections.succeeded("a", "other", 0)
    assert fail(ejections, "a", 0, 2) is None


def test_what_nobody_can_do_is_nobodys_fault() -> None:
    ejections = new()
    ejections.succeeded("b", "other", 0)
    assert fail(ejections, "a", 0, 9) is None
    assert fail(ejections, "b", 0, 9) is None
    ejections.succeeded("a", "k", 0)
    assert fail(ejections, "a", 0, 9) is None


def test_the_time_doubles_up_to_a_limit_and_a_success_ends_that() -> None:
    ejections, now, times = new(), 0.0, []
    ejections.succeeded("b", "k", now)
    fail(ejections, "a", now, 2)
    for _ in range(5):
        seconds = fail(ejections, "a", now, 1)
        assert seconds is not None
        assert fail(ejections, "a", now, 5) is None
        times.append(seconds)
        now += seconds
    assert times == [10, 20, 40, 60, 60]
    ejections.succeeded("a", "k", now - 1)
    assert fail(ejections, "a", now, 1) == 60
    now += 60
    ejections.succeeded("a", "k", now)
    assert fail(ejections, "a", now, 3) == 10


def test_never_one_that_nobody_can_replace() -> None:
    ejections = new()
    ejections.succeeded("b", "k", 0)
    for _ in range(9):
        assert ejections.failed("a", "k", 0, []) is None
        assert ejections.failed("a", "k", 0, ["a"]) is None
    assert ejections.failed("a", "k", 0, ["b"]) == 10


EVENTS = st.tuples(
    st.sampled_from(NAMES),
    st.booleans(),
    st.sampled_from("kl"),
    st.floats(0, 15),
    st.sets(st.sampled_from(NAMES)),
)


@given(st.lists(EVENTS, max_size=60), st.floats(0, 1), st.sets(st.sampled_from(NAMES), min_size=1))
def test_never_the_last_and_never_more_than_the_share(
    events: list[tuple[str, bool, str, float, set[str]]], share: float, eligible: set[str]
) -> None:
    ejections, now = new(share), 0.0
    for name, is_success, kind, passes, up in events:
        now += passes
        if is_success:
            ejections.succeeded(name, kind, now)
        elif (seconds := ejections.failed(name, kind, now, up)) is not None:
            assert 10 <= seconds <= 60
            assert up - ejections.ejected(now)
        assert len(ejections.ejected(now)) <= share * len(NAMES) + 1e-6
        assert len(ejections.ejected(now)) < len(NAMES)
        assert eligible - ejections.out(eligible, now)
        assert ejections.out(eligible, now) <= ejections.ejected(now)


def test_a_restart_forgives_nothing() -> None:
    """Neither an ejection that lasts, nor how long the next one is, nor failures that are not enough yet."""
    before = new()
    before.succeeded("b", "k", 0)
    assert fail(before, "a", 0) == 10
    assert fail(before, "a", 10, 1) == 20
    fail(before, "c", 10, 2)
    after = new()
    for name in NAMES:
        failures, times, until = before.record(name)
        after.restore(name, failures, times, until - 15, 1000)
    assert after.ejected(1000) == after.ejected(1014.9) == {"a"}
    assert after.ejected(1015) == set()
    assert fail(after, "c", 1015, 1) == 10
    assert fail(after, "a", 1015, 1) == 40


def test_no_clock_ejects_for_longer_than_an_ejection_lasts() -> None:
    ejections = new()
    ejections.restore("a", [], 1, 1e9, 0)
    assert ejections.ejected(59.9) == {"a"}
    assert ejections.ejected(60) == set()


def test_the_journal_keeps_a_record() -> None:
    wall = 1_800_000_000.0
    client: Any = None
    for now in (0.0, 500.0):
        ejections, again = new(), new()
        ejections.succeeded("b", frozenset({"K", "L"}), now)
        for _ in range(3):
            ejections.failed("a", frozenset({"K", "L"}), now, NAMES)
        backend = Backend("a", "http://a", 1, False, client, Pulse(30, 0), poisoned="bad", drained=True)
        record = record_of(backend, ejections, now, wall)
        fresh = Backend("a", "http://a", 1, False, client, Pulse(30, 0))
        restore(record, fresh, again, 7000.0, wall + 4)
        assert (fresh.poisoned, fresh.drained) == ("bad", True)
        assert again.ejected(7005.9) == {"a"}
        assert again.ejected(7006.1) == set()
        assert again.record("a")[:2] == ejections.record("a")[:2]
