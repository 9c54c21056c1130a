"""Round robin."""

from __future__ import annotations

from collections import Counter

from gateway.jobs.routing.policies.round_robin import RoundRobin
from gateway.jobs.routing.snapshot import BackendView
from tests.support.routing import head, snapshot


def turns(views: list[BackendView], count: int, policy: RoundRobin | None = None) -> list[str]:
    policy, found = policy or RoundRobin(), []
    for _ in range(count):
        choice = policy.choose(snapshot(views, [head("m", 10)]))
        assert choice is not None
        found.append(choice.backend)
    return found


def test_each_backend_in_turn() -> None:
    assert turns([BackendView(name, 9) for name in "abc"], 6) == [*"abcabc"]


def test_turns_follow_the_weights_and_are_spread() -> None:
    views = [BackendView("a", 9, weight=3.0), BackendView("b", 9)]
    found = turns(views, 8)
    assert Counter(found) == {"a": 6, "b": 2}
    assert "aaaa" not in "".join(found)


def test_a_full_backend_is_passed_over_and_gains_nothing() -> None:
    policy = RoundRobin()
    assert turns([BackendView("a", 0), BackendView("b", 9), BackendView("c", 9)], 4, policy) == [*"bcbc"]
    assert Counter(turns([BackendView(name, 9) for name in "abc"], 6, policy)) == {"a": 2, "b": 2, "c": 2}
    assert RoundRobin().choose(snapshot([BackendView("a", 0)], [head("m", 1)])) is None
