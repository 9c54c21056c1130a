"""Least work."""

from __future__ import annotations

from gateway.jobs.routing.policies.least_work import AGEING, LeastWork
from gateway.jobs.routing.snapshot import BackendView, Choice, Head
from tests.support.routing import LOAD_SECONDS, head, snapshot

M, OTHER = frozenset({"m"}), frozenset({"other"})


def choose(views: list[BackendView], heads: list[Head], now: float = 0.0, **speeds: float) -> Choice | None:
    return LeastWork().choose(snapshot(views, heads, speeds, now))


def chosen(views: list[BackendView], heads: list[Head], now: float = 0.0, **speeds: float) -> str | None:
    choice = choose(views, heads, now, **speeds)
    return choice.backend if choice else None


def test_the_fastest_idle_backend_wins() -> None:
    views = [BackendView("a", 1, held=M), BackendView("b", 1, held=M)]
    assert chosen(views, [head("m", 10)], a=1.0, b=2.0) == "b"


def test_a_warm_backend_wins_over_a_fast_one_if_it_ends_sooner() -> None:
    views = [BackendView("a", 1, held=M), BackendView("b", 1, held=frozenset())]
    assert chosen(views, [head("m", 10)], a=1.0, b=2.0) == "a"
    assert chosen(views, [head("m", 100)], a=1.0, b=2.0) == "b"


def test_a_job_waits_for_a_backend_where_it_ends_sooner() -> None:
    views = [BackendView("slow", 1, held=M), BackendView("fast", 0, 20.0, held=M)]
    assert chosen(views, [head("m", 100)], slow=0.5, fast=2.0) is None
    # The fast backend has room for one of two.
    assert chosen(views, [head("m", 100, count=2)], slow=1.0, fast=2.0) == "slow"


def test_a_load_that_pushes_a_model_out_costs_more() -> None:
    pushes = [BackendView("a", 1, held=OTHER), BackendView("b", 1, held=frozenset())]
    assert chosen(pushes, [head("m", 60)], a=1.2, b=1.0) == "b"
    keeps = [BackendView("a", 1, held=OTHER, keeps_several=True), BackendView("b", 1, held=frozenset())]
    assert chosen(keeps, [head("m", 60)], a=1.2, b=1.0) == "a"


def test_short_jobs_go_first_until_a_long_one_has_waited() -> None:
    views = [BackendView("a", 1, held=M)]
    short, long = head("m", 10, since=0.0), head("m", 100, since=0.0)
    choice = choose(views, [long, short])
    assert choice is not None
    assert choice.head is short
    waited = 90.0 / AGEING + 1.0
    newcomer = head("m", 10, since=waited)
    choice = choose(views, [long, newcomer], now=waited)
    assert choice is not None
    assert choice.head is long


def test_a_tenant_that_got_more_goes_later() -> None:
    views = [BackendView("a", 1, held=M)]
    flood, single = head("m", 10, tenant="flood", lead=60.0, count=500), head("m", 240, tenant="single")
    choice = choose(views, [flood, single])
    assert choice is not None
    assert choice.head is single


def test_a_job_waits_for_a_warm_backend_for_a_time_only() -> None:
    views = [BackendView("cold", 1, held=OTHER), BackendView("warm", 0, LOAD_SECONDS, held=M)]
    assert chosen(views, [head("m", 10)]) is None
    assert (
        chosen([BackendView("cold", 1, held=OTHER), BackendView("warm", 0, 515.0, M)], [head("m", 10)], 500.0) == "cold"
    )


def test_a_job_without_a_known_model_has_no_load() -> None:
    views = [BackendView("a", 1, held=M), BackendView("b", 0, 5.0)]
    assert chosen(views, [head("", 10)]) == "a"


def test_only_able_backends_count() -> None:
    views = [BackendView("a", 1, held=M), BackendView("b", 1), BackendView("c", 0, 5.0)]
    assert chosen(views, [head("m", 10, able="b")]) == "b"
    assert chosen(views, [head("m", 10, able="c")]) is None
    assert chosen(views, [head("m", 10, able="gone")]) is None
    assert chosen([BackendView("c", 0, 5.0)], [head("m", 10)]) is None


def test_identical_jobs_spread() -> None:
    views = [BackendView(name, 1, held=M) for name in "abc"]
    found = set()
    for _ in range(3):
        choice = choose(views, [head("m", 10, count=3)])
        assert choice is not None
        found.add(choice.backend)
        views = [BackendView(v.name, 0, 10.0, v.held) if v.name == choice.backend else v for v in views]
    assert found == set("abc")
