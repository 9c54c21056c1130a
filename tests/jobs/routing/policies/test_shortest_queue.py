"""Shortest queue."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.jobs.routing.policies.shortest_queue import ShortestQueue
from gateway.jobs.routing.snapshot import BackendView
from tests.support.routing import head, snapshot


def chosen(*views: BackendView, readiness: Mapping[str, int] | None = None) -> str | None:
    given = snapshot(views, [head("m", 10)])._replace(readiness=readiness or {})
    choice = ShortestQueue().choose(given)
    return choice.backend if choice else None


def test_the_fewest_pending_prompts_win() -> None:
    assert chosen(BackendView("a", 9, pending=2), BackendView("b", 9, pending=1, running=1)) == "b"


def test_ties() -> None:
    assert chosen(BackendView("a", 9, running=1), BackendView("b", 9)) == "b"
    assert chosen(BackendView("a", 9), BackendView("b", 9, held=frozenset({"m"}))) == "b"
    assert chosen(BackendView("a", 9), BackendView("b", 9, held=frozenset({"m"})), readiness={"a": 2}) == "a"
    assert chosen(BackendView("a", 9, used_at=2.0), BackendView("b", 9, used_at=1.0)) == "b"


def test_slow_and_full_backends_come_last() -> None:
    assert chosen(BackendView("a", 9, slow=True), BackendView("b", 9, pending=5)) == "b"
    assert chosen(BackendView("a", 9, slow=True), BackendView("b", 0)) == "a"
    assert chosen(BackendView("b", 0)) is None


def test_weights() -> None:
    assert chosen(BackendView("a", 9, pending=3, weight=4.0), BackendView("b", 9, pending=1)) == "a"


def test_the_earliest_head_goes_first() -> None:
    heads = [head("m", 10, number=2), head("m", 10, number=1), head("m", 10, number=0, able=["full"])]
    choice = ShortestQueue().choose(snapshot([BackendView("a", 1), BackendView("full", 0)], heads))
    assert choice is not None
    assert choice.head is heads[1]
