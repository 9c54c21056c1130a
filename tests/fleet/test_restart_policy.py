"""The policy of restarts, on paper: pauses, the maximum an hour, one at a time, and a network that is at fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.restart_policy import HOUR, Decision, Patient, Reason, Rules, choose, next_allowed, reason_of

NOW = 1_000_000.0
RULES = Rules(after=60, backoff=100, max_per_hour=3)
POISONED = Patient("b", RULES, poisoned=True)
DEAD = Patient("b", RULES, dead_for=60.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"poisoned": True}, Reason.POISONED),
        ({"poisoned": True, "drained": True}, None),
        ({"dead_for": 59.9}, None),
        ({"dead_for": 60.0}, Reason.DEAD),
        ({"dead_for": 99.0, "drained": True}, None),
        # A poisoned one that is gone may have been restarted by hand, and be starting.
        ({"poisoned": True, "dead_for": 5.0}, None),
        ({"poisoned": True, "dead_for": 61.0}, Reason.DEAD),
        ({"dead_for": 0.0, "is_unfinished": True}, Reason.DEAD),
        ({"is_well": True, "is_unfinished": True}, None),
    ],
)
def test_the_reason(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(replace(Patient("b", RULES), **changes)) is reason


@pytest.mark.parametrize(
    ("ago", "unfinished", "wait"),
    [
        ((), False, 0),
        ((30,), False, 70),
        ((200, 30), False, 170),
        ((30,), True, -30),
        ((500, 400, 300), False, HOUR - 500),
        ((500, 400, 300), True, HOUR - 500),
        ((4000, 30), False, 70),
        # The clock was set back.
        ((-9999,), False, 100),
    ],
)
def test_the_pause_doubles_and_the_hour_has_a_maximum(ago: tuple[float, ...], unfinished: bool, wait: float) -> None:
    patient = replace(POISONED, attempts=tuple(NOW - each for each in ago), is_unfinished=unfinished)
    assert next_allowed(patient, NOW) == NOW + wait
    assert (choose([patient], 0, 9, NOW).name == "b") is (wait <= 0)


def test_one_at_a_time_and_the_poisoned_first() -> None:
    patients = [replace(DEAD, name="d60"), replace(DEAD, name="d90", dead_for=90.0), replace(POISONED, name="p")]
    assert choose(patients, 2, 9, NOW).name == "p"
    assert choose(patients[:2], 2, 9, NOW).name == "d90"
    limited = replace(POISONED, attempts=(NOW - 900, NOW - 800, NOW - 700))
    assert choose([limited], 0, 9, NOW) == Decision(limited=frozenset({"b"}))


def test_if_most_are_dead_each_waits_for_the_one_before() -> None:
    tried = replace(DEAD, name="a", attempts=(NOW - 99,), dead_for=99.0)
    both = [tried, DEAD]
    assert choose(both, 2, 4, NOW).name == "b"
    assert choose(both, 3, 4, NOW) == Decision(is_most_dead=True)
    assert choose([replace(tried, is_well=True, dead_for=None), DEAD], 3, 4, NOW).name == "b"
    assert choose(both, 3, 4, NOW + 1).name == "b"


@settings(max_examples=40)
@given(st.lists(st.floats(0, 3 * HOUR), max_size=80), st.booleans())
def test_no_hour_has_more_than_the_maximum(moments: list[float], unfinished: bool) -> None:
    """Whenever the gateway looks, and if it ends during each restart."""
    attempts: list[float] = []
    for now in sorted(moments):
        patient = replace(POISONED, attempts=tuple(attempts), is_unfinished=unfinished and bool(attempts))
        if choose([patient], 0, 2, now).name is not None:
            attempts.append(now)
    for first in attempts:
        assert sum(first <= each < first + HOUR for each in attempts) <= RULES.max_per_hour
