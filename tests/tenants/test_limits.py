"""Limits of tenants, by a clock that the tests set; and what holds of them whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import TenantSettings
from gateway.tenants.limits import UNCOUNTED_BODY, LimitReached, Limits, starts_in
from gateway.tenants.policy import Policies
from gateway.tenants.token_bucket import TokenBucket, whole_seconds
from tests.support.limits import limits

_RATES = st.floats(0.01, 1_000)
_STEPS = st.lists(st.floats(0, 30), max_size=60)


@pytest.mark.parametrize(
    ("rate", "capacity", "times", "taken"),
    [
        (1, 1, [0, 0, 0.5, 1, 1.5, 2], [True, False, False, True, False, True]),
        (2, 4, [0] * 5 + [0.5, 0.5], [True] * 4 + [False, True, False]),
        (10, 10, [0] * 10 + [100] * 11, [True] * 10 + [True] * 10 + [False]),
        (0.5, 1, [0, 1, 2, 3.9, 4], [True, False, True, False, True]),
        # A clock that goes back gives nothing.
        (1, 1, [10, 5, 10.5, 11], [True, False, False, True]),
    ],
)
def test_a_bucket_as_a_table(rate: float, capacity: float, times: list[float], taken: list[bool]) -> None:
    bucket = TokenBucket.full(rate, capacity, times[0])
    assert [bucket.take(now) for now in times] == taken


@given(rate=_RATES, capacity=st.integers(1, 100), steps=_STEPS)
def test_no_span_of_time_sees_more_than_burst_and_rate(rate: float, capacity: int, steps: list[float]) -> None:
    bucket, now, taken = TokenBucket.full(rate, capacity, 0.0), 0.0, []
    for step in steps:
        now += step
        for _ in range(3):
            if bucket.take(now):
                taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= capacity + rate * (taken[last] - taken[first]) + 1e-6


@given(rate=_RATES, capacity=st.integers(1, 100), steps=_STEPS)
def test_whoever_waits_as_told_is_served(rate: float, capacity: int, steps: list[float]) -> None:
    bucket, now = TokenBucket.full(rate, capacity, 0.0), 0.0
    for step in steps:
        now += step
        if not bucket.take(now):
            now += whole_seconds(bucket.next_in(now))
            assert bucket.take(now)
        assert 0.0 <= bucket.left(now) <= capacity


def test_requests_are_a_tenants_own() -> None:
    two = limits({"requests_per_second": 2}, ben={"requests_per_second": None}, eve={"requests_burst": 5})
    assert [two.request("anna", 0.0) is None for _ in range(3)] == [True, True, False]
    assert all(two.request("ben", 0.0) is None for _ in range(100))
    # What is named differs setting by setting: eve has the rate of all, and a burst of her own.
    assert [two.request("eve", 0.0) is None for _ in range(6)] == [True] * 5 + [False]
    reached = two.request("anna", 0.1)
    assert reached is not None
    assert (reached.limit, reached.value, reached.retry_after, reached.quota, reached.window) == (
        "requests_per_second",
        2,
        1,
        2,
        1,
    )
    assert two.request("anna", 1.1) is None


def test_prompts_a_minute() -> None:
    six = limits({"prompts_per_minute": 6})
    for _ in range(6):
        six.prompt("anna", 0.0)
    with pytest.raises(LimitReached) as caught:
        six.prompt("anna", 1.0)
    assert (caught.value.limit, caught.value.retry_after, caught.value.window) == ("prompts_per_minute", 9, 60)
    six.prompt("ben", 1.0)
    six.prompt("anna", 10.0)
    (quota,) = six.quotas("anna", 10.0)
    assert (quota.value, quota.window, quota.left, quota.resets_in) == (6, 60, 0, 60)
    assert six.quotas("nobody", 10.0)[0].left == 6
    assert limits({}).quotas("anna", 0.0) == []


def test_sockets_are_counted_while_they_are_open() -> None:
    two = limits({"sockets": 2})
    with two.socket("anna"):
        with two.socket("anna"):
            with pytest.raises(LimitReached) as caught, two.socket("anna"):
                pass
            assert (caught.value.used, caught.value.value) == (2, 2)
            with two.socket("ben"):
                pass
        with two.socket("anna"):
            pass
    assert len(two) == 0


@pytest.mark.parametrize(
    ("run_seconds", "running", "retry_after"),
    [(None, 0, 10), (None, 3, 10), (60.0, 1, 60), (60.0, 4, 15), (0.1, 2, 1), (5.0, 0, 5), (1e9, 1, 3600)],
)
def test_when_one_of_those_that_wait_may_start(run_seconds: float | None, running: int, retry_after: int) -> None:
    three = limits({"jobs_waiting": 3})
    three.one_more_waits("anna", 2, starts_in(run_seconds, running))
    with pytest.raises(LimitReached) as caught:
        three.one_more_waits("anna", 3, starts_in(run_seconds, running))
    assert caught.value.retry_after == retry_after


def test_how_many_may_run() -> None:
    one = limits({}, anna={"jobs_running": 1})
    assert [one.may_run_more("anna", n) for n in range(3)] == [True, False, False]
    assert one.may_run_more("ben", 1_000)
    assert one.bounds_running
    assert not limits({}).bounds_running


def test_what_is_kept_is_bounded() -> None:
    """A bucket that is full again says what a new one says, and is dropped."""
    some = limits({"requests_per_second": 1, "prompts_per_minute": 60})
    for n in range(1_000):
        some.request(f"tenant-{n}", 0.0)
        some.prompt(f"tenant-{n}", 0.0)
    assert len(some) == 2_000
    some.request("anna", 3_600.0)
    assert len(some) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5)), max_size=80))
def test_dropping_full_buckets_changes_no_answer(events: list[tuple[str, float]]) -> None:
    """With the sweep and without it: the same requests pass."""
    swept, kept, now = limits({"requests_per_second": 0.5}), limits({"requests_per_second": 0.5}), 0.0
    for tenant, step in events:
        now += step
        swept._sweep_at, kept._sweep_at = 0.0, float("inf")
        assert (swept.request(tenant, now) is None) == (kept.request(tenant, now) is None)


def test_bodies_that_are_read_at_a_time() -> None:
    """A tenant's count together, and all together; what one took is there again when it has been read."""
    tenants = TenantSettings.model_validate({"default": {"limits": {"bodies_bytes": 300_000}}})
    held = Limits(Policies(tenants, ()), max_bodies_bytes=500_000)
    with held.body("anna") as first, held.body("anna") as second:
        first(UNCOUNTED_BODY)
        first(200_000)
        second(100_000)
        second(60_000)
        with pytest.raises(LimitReached, match="fewer") as caught:
            second(100_001)
        assert (caught.value.limit, caught.value.used, caught.value.retry_after) == ("bodies_bytes", 200_000, 1)
        with held.body("ben") as other:
            other(200_000)
            with pytest.raises(LimitReached, match="of all callers"):
                other(200_001)
        with held.body("ben") as other:
            other(200_000)
    with held.body("anna") as first:
        first(300_000)
