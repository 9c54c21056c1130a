"""The VRAM guard's decisions, on paper."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fleet.vram_guard import Action, Guard, Reading, Rules, decide, used_share

RULES = Rules(above=0.9, after=60, free_every=600, settle=5)
NOW = 10_000.0
FULL, LOW, IDLE, NEEDED = Reading(0.95), Reading(0.5), Reading(0.95, is_idle=True), Reading(0.95, True, True)
LONG = NOW - 60
GUARDED = Guard(LONG, is_guarded=True)


@pytest.mark.parametrize(
    ("guard", "reading", "after", "action"),
    [
        (Guard(), LOW, Guard(), Action.NONE),
        (Guard(), FULL, Guard(NOW), Action.NONE),
        (Guard(NOW - 59), FULL, Guard(NOW - 59), Action.NONE),
        (Guard(NOW - 59), LOW, Guard(), Action.NONE),
        (Guard(LONG), FULL, GUARDED, Action.GUARD),
        (Guard(LONG), IDLE, GUARDED, Action.GUARD),
        # Never the last one while work waits.
        (Guard(LONG), NEEDED, Guard(LONG), Action.NONE),
        (GUARDED, NEEDED, Guard(LONG), Action.RELEASE),
        # What runs there goes on; then its memory is freed, once.
        (GUARDED, FULL, GUARDED, Action.NONE),
        (GUARDED, IDLE, Guard(LONG, True, NOW), Action.FREE),
        (Guard(LONG, True, NOW - 4), IDLE, Guard(LONG, True, NOW - 4), Action.NONE),
        (Guard(LONG, True, NOW - 5), IDLE, Guard(LONG, True, NOW - 5, True), Action.TELL),
        (Guard(LONG, True, NOW - 5, True), IDLE, Guard(LONG, True, NOW - 5, True), Action.NONE),
        (Guard(LONG, True, NOW - 5), Reading(0.02, True), Guard(freed_at=NOW - 5), Action.RELEASE),
        # Full again soon after it was freed: that is its usual state.
        (Guard(LONG, freed_at=NOW - 599), IDLE, Guard(LONG, freed_at=NOW - 599), Action.NONE),
        (Guard(LONG, freed_at=NOW - 600), IDLE, Guard(LONG, True, NOW - 600), Action.GUARD),
        (Guard(LONG, True, NOW - 600, True), IDLE, Guard(LONG, True, NOW), Action.FREE),
        # It has no GPU, or does not say.
        (GUARDED, Reading(None), Guard(), Action.RELEASE),
    ],
)
def test_each_case(guard: Guard, reading: Reading, after: Guard, action: Action) -> None:
    assert decide(guard, reading, NOW, RULES) == (after, action)


@pytest.mark.parametrize(
    ("devices", "used"),
    [
        ([], None),
        ([{"type": "cpu", "vram_total": 100, "vram_free": 1}], None),
        ([{"type": "cuda", "vram_total": 100, "vram_free": 25}], 0.75),
        ([{"type": "cuda", "vram_total": 100, "vram_free": free} for free in (90, 10, 50)], 0.9),
        ([{"type": "cuda", "vram_total": 0, "vram_free": 0}, {"type": "cuda", "vram_total": 9}], None),
        ([{"type": "cuda", "vram_total": 10, "vram_free": 20}], 0.0),
    ],
)
def test_the_used_share(devices: list[dict[str, Any]], used: float | None) -> None:
    found = used_share(devices)
    assert found == (None if used is None else pytest.approx(used))


readings = st.builds(Reading, st.sampled_from([None, 0.1, 0.95]), st.booleans(), st.booleans())


@settings(max_examples=60)
@given(st.lists(st.tuples(readings, st.floats(0.1, 200)), max_size=60))
def test_whatever_comes(steps: list[tuple[Reading, float]]) -> None:
    """A guarded one is full and not needed, memory is freed there alone, idle, and once a while."""
    guard, now = Guard(), 0.0
    freed: list[float] = []
    for reading, pause in steps:
        now += pause
        before, (guard, action) = guard, decide(guard, reading, now, RULES)
        if guard.is_guarded:
            assert reading.used == 0.95
            assert not reading.is_needed
        assert (action is Action.GUARD) == (guard.is_guarded and not before.is_guarded)
        assert (action is Action.RELEASE) == (before.is_guarded and not guard.is_guarded)
        if action is Action.FREE:
            assert before.is_guarded
            assert reading.is_idle
            freed.append(now)
    assert all(second - first >= RULES.free_every for first, second in pairwise(freed))
