"""Random two."""

from __future__ import annotations

from collections import Counter
from random import Random

from gateway.jobs.routing.policies.random_two import RandomTwo
from gateway.jobs.routing.snapshot import BackendView
from tests.support.routing import head, snapshot


def test_the_less_loaded_of_two_wins() -> None:
    policy = RandomTwo(Random(1))
    views = [BackendView("a", 9, pending=5), BackendView("b", 9, pending=1), BackendView("c", 9)]
    found = Counter(getattr(policy.choose(snapshot(views, [head("m", 1)])), "backend", "") for _ in range(300))
    # The most loaded of three loses each comparison.
    assert set(found) == {"b", "c"}
    assert found["c"] > found["b"] > 50


def test_weights_and_full_backends() -> None:
    policy = RandomTwo(Random(1))
    views = [BackendView("a", 9, pending=3, weight=4.0), BackendView("b", 9, pending=1), BackendView("c", 0)]
    for _ in range(20):
        choice = policy.choose(snapshot(views, [head("m", 1)]))
        assert choice is not None
        assert choice.backend == "a"
    assert policy.choose(snapshot([BackendView("c", 0)], [head("m", 1)])) is None
