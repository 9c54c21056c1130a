"""The schedule of a delivery, and the circuit breaker of a receiver. Time and chance are passed in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.webhooks.model import (
    MAX_ATTEMPTS_KEPT,
    TERMINAL,
    Attempt,
    Delivery,
    DeliveryState,
    Endpoint,
    EndpointState,
    Reason,
)
from gateway.webhooks.schedule import (
    BREAKER_FAILURES,
    FIRST_PAUSE,
    JITTER,
    MAX_PAUSE,
    MAX_RETRY_AFTER,
    MAX_WAIT,
    WAITS,
    Breaker,
    Verdict,
    after_attempt,
    after_verdict,
    breaker_after,
    verdict_of,
)

DAY = 86_400.0
NEW = Delivery("evt_1", "we_1", "t", next_at=0.0)


@pytest.mark.parametrize(
    ("status", "outcome", "verdict"),
    [
        (200, "", Verdict.SUCCESS),
        (204, "", Verdict.SUCCESS),
        (299, "", Verdict.SUCCESS),
        (301, "redirect", Verdict.FAILURE),
        (304, "", Verdict.FAILURE),
        (400, "", Verdict.FAILURE),
        (404, "", Verdict.FAILURE),
        (410, "", Verdict.GONE),
        (429, "", Verdict.SLOW_DOWN),
        (500, "", Verdict.FAILURE),
        (502, "", Verdict.SLOW_DOWN),
        (503, "", Verdict.SLOW_DOWN),
        (504, "", Verdict.SLOW_DOWN),
        (None, "timeout", Verdict.FAILURE),
        (None, "unreachable", Verdict.FAILURE),
    ],
)
def test_the_meaning_of_an_attempt(status: int | None, outcome: str, verdict: Verdict) -> None:
    assert verdict_of(Attempt(0.0, status, 0.1, outcome)) is verdict


def tried(status: int, *, keep: float, retry_after: float | None = None, chance: float = 0.0) -> list[float]:
    """The times of all attempts at a receiver that always answers so."""
    delivery, times = NEW, list[float]()
    while delivery.next_at is not None:
        times.append(delivery.next_at)
        delivery = after_attempt(delivery, Attempt(times[-1], status, 0.0), retry_after, times[-1], keep, chance)
        assert (delivery.state is DeliveryState.PENDING) == (delivery.next_at is not None)
    assert delivery.tries == len(times)
    return times


def test_the_specifications_schedule_and_its_end() -> None:
    assert sum(WAITS) == 75 * 3600 + 35 * 60 + 5
    whole = tried(500, keep=30 * DAY)
    assert whole == [sum(WAITS[: n + 1]) for n in range(10)]
    # With the default of three days the last attempt of ten would come too late.
    assert tried(500, keep=3 * DAY) == whole[:9]
    assert tried(500, keep=60.0) == [0.0, 5.0]
    assert tried(410, keep=30 * DAY) == [0.0]
    assert tried(204, keep=30 * DAY) == [0.0]


def test_retry_after_is_honoured_within_bounds() -> None:
    assert tried(429, keep=30 * DAY, retry_after=120.0)[:3] == [0.0, 120.0, 420.0]
    assert tried(503, keep=300 * DAY, retry_after=1e9)[1] == MAX_RETRY_AFTER
    assert tried(503, keep=3600.0, retry_after=7200.0) == [0.0]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([200, 410, 429, 500, 503]), st.none() | st.floats(0, 1e6), st.floats(0, 1))),
    st.floats(1, 40 * DAY),
)
def test_whatever_a_receiver_answers(answers: list[tuple[int, float | None, float]], keep: float) -> None:
    delivery, at = NEW, 0.0
    for status, retry_after, chance in answers:
        if delivery.next_at is None:
            break
        assert at <= delivery.next_at <= max(keep, at)
        at = delivery.next_at
        delivery = after_attempt(delivery, Attempt(at, status, 0.0), retry_after, at, keep, chance)
        assert len(delivery.attempts) <= MAX_ATTEMPTS_KEPT
        if delivery.next_at is not None:
            wait = delivery.next_at - at
            assert max(WAITS[delivery.tries], min(retry_after or 0.0, MAX_RETRY_AFTER)) <= wait + 1e-6
            assert wait <= MAX_WAIT + 1e-6
            assert wait <= max(WAITS[delivery.tries], retry_after or 0.0) * (1 + JITTER) + 1e-6
    assert delivery.tries <= len(WAITS)
    assert (delivery.state is DeliveryState.DELIVERED) == bool(delivery.attempts and delivery.attempts[-1].is_success)


ENABLED = Endpoint("we_1", "t", "https://hooks.example/", TERMINAL, (), 0.0)
FAILING = replace(ENABLED, failing_since=100.0)


@pytest.mark.parametrize(
    ("before", "verdict", "now", "seen_for", "after"),
    [
        (ENABLED, Verdict.SUCCESS, 100.0, 0.0, ENABLED),
        (ENABLED, Verdict.FAILURE, 100.0, 0.0, FAILING),
        (ENABLED, Verdict.GONE, 100.0, 0.0, replace(ENABLED, state=EndpointState.DISABLED, reason=Reason.GONE)),
        (FAILING, Verdict.SUCCESS, 200.0, 100.0, ENABLED),
        (FAILING, Verdict.SLOW_DOWN, 99.0 + 3 * DAY, 3 * DAY, FAILING),
        (FAILING, Verdict.FAILURE, 100.0 + 3 * DAY, 3 * DAY, "failing"),
        # After a restart an hour of failures is enough; a clock that was set is not.
        (FAILING, Verdict.FAILURE, 100.0 + 3 * DAY, 3_600.0, "failing"),
        (FAILING, Verdict.FAILURE, 100.0 + 40 * DAY, 3_599.0, FAILING),
    ],
)
def test_an_endpoint_after_an_attempt(
    before: Endpoint, verdict: Verdict, now: float, seen_for: float, after: Endpoint | str
) -> None:
    if after == "failing":
        after = replace(before, state=EndpointState.DISABLED, reason=Reason.FAILING)
    assert after_verdict(before, verdict, now, seen_for, 3 * DAY) == after


def test_a_breaker_opens_tries_one_and_closes() -> None:
    breaker = Breaker()
    for n in range(BREAKER_FAILURES - 1):
        assert breaker.note(Verdict.FAILURE, float(n), 0.0) is False
        assert breaker.admits(float(n), 3)
    breaker.note(Verdict.FAILURE, 10.0, 0.0)
    assert not breaker.admits(10.0 + FIRST_PAUSE - 0.1, 0)
    assert breaker.admits(10.0 + FIRST_PAUSE, 0)
    assert not breaker.admits(10.0 + FIRST_PAUSE, 1)
    breaker.note(Verdict.FAILURE, 40.0, 0.0)
    assert not breaker.admits(40.0 + 2 * FIRST_PAUSE - 0.1, 0)
    assert breaker.note(Verdict.SUCCESS, 100.0, 0.0) is True
    assert breaker.is_fresh
    assert breaker.note(Verdict.SUCCESS, 101.0, 0.0) is False


def test_an_overloaded_receiver_gets_a_pause_at_once_as_long_as_it_asks_for() -> None:
    breaker = Breaker()
    breaker.note(Verdict.SLOW_DOWN, 0.0, 0.0, 600.0)
    assert not breaker.admits(599.0, 0)
    assert breaker.admits(600.0, 0)
    breaker.note(Verdict.SLOW_DOWN, 600.0, 0.0, 1e9)
    assert breaker.until == 600.0 + MAX_RETRY_AFTER


@pytest.mark.parametrize("verdict", [Verdict.FAILURE, Verdict.SLOW_DOWN])
def test_attempts_that_were_under_way_when_a_breaker_opened_make_no_longer_pause(verdict: Verdict) -> None:
    """A receiver that fails for a second may fail many at once. Retry-After of each counts all the same."""
    breaker = Breaker()
    for n in range(64):
        breaker.note(verdict, n / 64, 0.0)
    assert breaker.admits(1.0 + FIRST_PAUSE, 0)
    breaker.note(verdict, 2.0 + FIRST_PAUSE, 0.0)
    assert not breaker.admits(2.0 + 3 * FIRST_PAUSE - 0.1, 0)
    breaker.note(Verdict.SLOW_DOWN, 3.0 + FIRST_PAUSE, 0.0, 10 * FIRST_PAUSE)
    assert breaker.until == 3.0 + 11 * FIRST_PAUSE
    attempts = [Attempt(at, 503, 0.5) for at in (0.0, 0.01, 0.02, 0.03)]
    assert breaker_after(attempts, 10.0, 10.0).until == 0.5 + FIRST_PAUSE


def test_a_pause_is_bounded_however_often_a_receiver_fails() -> None:
    breaker, at = Breaker(), 0.0
    for _ in range(2_000):
        breaker.note(Verdict.FAILURE, at, 1.0)
        assert breaker.until - at <= MAX_PAUSE * (1 + JITTER)
        at = max(at, breaker.until)
