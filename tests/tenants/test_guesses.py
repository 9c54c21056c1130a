"""How many file names a tenant's prompts may try, by a clock that the tests set."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tenants.guesses import MAX_REMEMBERED, REMEMBER_SECONDS, SWEEP_SECONDS, Guesses
from gateway.tenants.limits import LimitReached, Limits
from gateway.web.guard.rate_limits import refuse
from tests.support.limits import limits


def names(count: int, first: int = 0) -> list[str]:
    """So many file names."""
    return [f"ComfyUI_temp_{n:05}.png" for n in range(first, first + count)]


def reached(own: Limits, tenant: str, tried: list[str], now: float) -> LimitReached | None:
    """The limit that a prompt with these names reaches."""
    try:
        own.bad_names(tenant, tried, now)
    except LimitReached as error:
        return error
    return None


def test_there_is_a_limit_from_the_start() -> None:
    own = limits({})
    for n in range(5):
        own.bad_names("ben", names(20, 20 * n), 0.0)
    error = reached(own, "ben", names(3, 100), 0.0)
    assert error is not None
    assert (error.limit, error.value, error.quota, error.window) == ("bad_names_per_minute", 100, 100, 60)
    assert error.retry_after == 2
    # Whoever waits as told is served; others have their own.
    assert reached(own, "anna", names(20), 0.0) is None
    assert reached(own, "ben", names(3, 100), 2.0) is None
    assert reached(own, "ben", names(1, 103), 2.0) is not None


def test_a_prompt_has_a_limit_of_its_own() -> None:
    own = limits({"bad_names_per_prompt": 3}, eve={"bad_names_per_prompt": None, "bad_names_per_minute": None})
    error = reached(own, "ben", names(4), 0.0)
    assert error is not None
    assert (error.limit, error.value, error.used, error.retry_after) == ("bad_names_per_prompt", 3, 4, None)
    # One name, however often, is one; and what was refused has cost nothing.
    assert reached(own, "ben", names(3) * 50, 0.0) is None
    assert reached(own, "eve", names(50_000), 0.0) is None


def test_the_same_name_again_is_no_new_guess_for_a_while() -> None:
    own = limits({"bad_names_per_minute": 2})
    for _ in range(50):
        own.bad_names("ben", names(2), 0.0)
    assert reached(own, "ben", names(1, 5), 0.0) is not None
    assert reached(own, "ben", names(2), 0.0) is None
    own.bad_names("ben", names(2, 2), REMEMBER_SECONDS)
    assert reached(own, "ben", names(2), REMEMBER_SECONDS) is not None


def test_more_names_than_the_bucket_holds_cost_all_of_it() -> None:
    own = limits({"bad_names_per_minute": 5, "bad_names_per_prompt": 20})
    assert reached(own, "ben", names(20), 0.0) is None
    error = reached(own, "ben", names(20, 20), 30.0)
    assert error is not None
    assert error.retry_after == 30
    assert reached(own, "ben", names(20, 20), 60.0) is None


@given(st.lists(st.tuples(st.floats(0, 20), st.lists(st.integers(0, 500), min_size=1, max_size=20)), max_size=60))
def test_no_more_new_names_than_the_rate_allows(prompts: list[tuple[float, list[int]]]) -> None:
    guesses, now, tried = Guesses(), 0.0, set[int]()
    for step, wanted in prompts:
        now += step
        if guesses.take("ben", [str(name) for name in wanted], 30, now) is None:
            tried |= set(wanted)
    assert len(tried) <= 30 + now * 30 / 60.0 + 1e-6


def test_what_is_kept_is_bounded() -> None:
    guesses = Guesses()
    for n in range(1_000):
        guesses.take(f"tenant-{n}", ["x" * 30_000], 100, 0.0)
    assert len(guesses) == 1_000
    for n in range(5 * MAX_REMEMBERED):
        guesses.take("ben", [str(n)], 1_000_000, SWEEP_SECONDS + 1)
    assert len(guesses) == 1_001
    assert len(guesses._guessers["ben"].paid) == MAX_REMEMBERED
    guesses.take("anna", ["x"], 100, 2 * REMEMBER_SECONDS)
    assert len(guesses) == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.floats(0, 400)), max_size=60))
def test_what_is_not_kept_changes_no_answer(events: list[tuple[str, int, float]]) -> None:
    swept, kept, now = Guesses(), Guesses(), 0.0
    for tenant, name, step in events:
        now += step
        swept._sweep_at, kept._sweep_at = 0.0, float("inf")
        answers = [each.take(tenant, [str(name)], 2, now) is None for each in (swept, kept)]
        assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("setting", "tried", "status", "type_", "waits"),
    [
        ("bad_names_per_prompt", 3, 400, "too_many_bad_names", False),
        ("bad_names_per_minute", 2, 429, "limit_reached", True),
    ],
)
def test_the_answer_is_an_error_in_comfyuis_form(
    setting: str, tried: int, status: int, type_: str, waits: bool
) -> None:
    own = limits({"bad_names_per_prompt": 2, "bad_names_per_minute": 2})
    if waits:
        own.bad_names("ben", names(2, 10), 0.0)
    error = reached(own, "ben", names(tried), 0.0)
    assert error is not None
    answer = refuse(error)
    assert isinstance(answer.body, bytes)
    body: Any = json.loads(answer.body)
    assert (answer.status, body["error"]["type"]) == (status, type_)
    assert body["error"]["extra_info"]["limit"] == setting
    assert body["node_errors"] == {}
    assert ("Retry-After" in answer.headers) == waits
    assert "files that are not yours" in body["error"]["message"]
