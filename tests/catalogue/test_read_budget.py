"""Budgets of reads that clients cause."""

from __future__ import annotations

from gateway.catalogue.read_budget import ALL_CLASSES_SHARE, FOLDERS_SHARE, MIN_PROMPTS_PAUSE, PROMPTS_SHARE, Budget


def test_all_parts_together_take_one_percent() -> None:
    assert round(ALL_CLASSES_SHARE + FOLDERS_SHARE + PROMPTS_SHARE, 6) == 0.01


def test_a_read_is_followed_by_a_pause_by_its_length() -> None:
    budget = Budget(FOLDERS_SHARE)
    assert budget.has_room(0.0)
    budget.spend(10.0, 0.012)
    assert not budget.has_room(11.9)
    assert budget.has_room(12.01)


def test_however_often_it_is_asked_its_share_is_kept() -> None:
    """Ten thousand looks, each as soon as there is room, of any length."""
    budget, now, spent = Budget(FOLDERS_SHARE), 0.0, 0.0
    for n in range(10_000):
        now = max(now, budget.free_at)
        seconds = (n % 7) / 100
        now, spent = now + seconds, spent + seconds
        budget.spend(now, seconds)
    assert spent <= FOLDERS_SHARE * budget.free_at


def test_prompts_wait_a_second_however_short_the_reads() -> None:
    budget = Budget(PROMPTS_SHARE, MIN_PROMPTS_PAUSE)
    budget.spend(5.0, 0.00001)
    assert budget.free_at == 5.0 + MIN_PROMPTS_PAUSE


def test_a_backend_that_does_not_answer_is_left_alone() -> None:
    budget = Budget(FOLDERS_SHARE)
    budget.fail(1.0)
    assert not budget.has_room(15.9)
    assert budget.has_room(16.0)
