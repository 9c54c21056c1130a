"""Budgets of reads that clients cause."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from gateway.catalogue.read_budget import (
    ALL_CLASSES_SHARE,
    FOLDERS_SHARE,
    MAX_RISE,
    MIN_LOOK_PAUSE,
    PROMPTS_SHARE,
    SAVING_SECONDS,
    WINDOW_SECONDS,
    Budget,
    Cost,
)

CAPACITY = FOLDERS_SHARE * SAVING_SECONDS
LOOK = 0.006
USUAL = 0.012


def test_all_parts_together_take_one_percent() -> None:
    assert round(ALL_CLASSES_SHARE + FOLDERS_SHARE + PROMPTS_SHARE, 6) == 0.01


@pytest.mark.parametrize("most", [0.001, LOOK, 0.02, CAPACITY])
def test_however_often_it_is_asked_its_share_of_each_minute_is_kept(most: float) -> None:
    """A thousand looks, each as soon as there is room or some time later."""
    budget, now, spent = Budget(FOLDERS_SHARE), 0.0, list[tuple[float, float]]()
    chances = random.Random(most)
    for _ in range(1000):
        cost = chances.uniform(most / 2, most)
        now = max(now, budget.free_at(cost)) + chances.choice([0.0, 0.0, 0.0, 20.0])
        assert budget.has_room(now, cost)
        budget.spend(now, cost)
        spent.append((now, cost))
    for began, _ in spent:
        minute = sum(cost for at, cost in spent if began <= at <= began + WINDOW_SECONDS)
        assert minute <= FOLDERS_SHARE * WINDOW_SECONDS + 1e-9


def test_what_costs_more_than_can_be_saved_keeps_its_share_in_the_long_run() -> None:
    budget, now, spent = Budget(FOLDERS_SHARE), 0.0, 0.0
    for n in range(1000):
        cost = CAPACITY * (1 + n % 7)
        now = max(now, budget.free_at(cost))
        budget.spend(now, cost)
        spent += cost
    assert spent <= FOLDERS_SHARE * now


def test_asked_all_the_time_it_looks_every_three_seconds() -> None:
    """As long as a look costs what an idle ComfyUI takes, with the cost of a change now and then."""
    budget, now, looks = Budget(FOLDERS_SHARE, MIN_LOOK_PAUSE), 0.0, [0.0]
    while now < 600:
        now += 0.25
        if budget.has_room(now, LOOK):
            budget.begin(now)
            budget.spend(now, LOOK)
            if len(looks) % 10 == 0:
                budget.spend(now, LOOK)
            looks.append(now)
    assert max(later - earlier for earlier, later in pairwise(looks)) <= 2.5


def test_after_a_quiet_time_it_looks_at_once() -> None:
    budget = Budget(FOLDERS_SHARE, MIN_LOOK_PAUSE)
    budget.begin(5.0)
    budget.spend(5.0, CAPACITY)
    assert not budget.has_room(5.0 + MIN_LOOK_PAUSE, CAPACITY / 4)
    assert budget.has_room(5.0 + 3.1, CAPACITY / 4)
    assert budget.has_room(5.0 + 12.1, CAPACITY)


def test_however_short_they_are_looks_keep_a_distance() -> None:
    budget = Budget(FOLDERS_SHARE, MIN_LOOK_PAUSE)
    budget.begin(5.0)
    budget.spend(5.0, 0.00001)
    assert not budget.has_room(5.0 + MIN_LOOK_PAUSE - 0.01, 0.00001)
    assert budget.has_room(5.0 + MIN_LOOK_PAUSE, 0.00001)


def test_a_backend_that_does_not_answer_is_left_alone() -> None:
    budget = Budget(FOLDERS_SHARE)
    budget.fail(1.0)
    assert not budget.has_room(15.9, 0.0)
    assert budget.has_room(16.0, 0.0)


def test_a_cost_is_what_the_shortest_answers_took() -> None:
    """On a machine where one answer in five is undisturbed, and the others take up to ten times as long."""
    cost, chances = Cost(USUAL), random.Random(1)
    known = []
    for n in range(1000):
        cost.note(LOOK if n % 5 == 4 else LOOK * chances.uniform(1, 10))
        known.append(cost.seconds)
    assert min(known) == LOOK
    assert max(known[5:]) <= LOOK * MAX_RISE**5


def test_a_first_answer_that_was_late_delays_nothing() -> None:
    """An hour on a blocked backend would else be followed by days without a look."""
    cost, budget = Cost(USUAL), Budget(FOLDERS_SHARE, MIN_LOOK_PAUSE)
    cost.note(3600.0)
    budget.spend(10.0, cost.seconds)
    assert budget.has_room(10.0, cost.seconds)


def test_a_cost_that_grows_is_followed() -> None:
    """Until it is known, an expensive look takes more than its share, but no more than twice as much."""
    cost, budget, now, spent, true = Cost(USUAL), Budget(FOLDERS_SHARE), 0.0, 0.0, 10 * USUAL
    while cost.seconds < true:
        now = max(now, budget.free_at(cost.seconds))
        cost.note(true)
        budget.spend(now, cost.seconds)
        spent += true
    assert cost.seconds == true
    assert spent <= 3 * FOLDERS_SHARE * now
    while now < 3600:
        now = max(now, budget.free_at(cost.seconds))
        budget.spend(now, cost.seconds)
        spent += true
    assert spent <= 1.1 * FOLDERS_SHARE * now
