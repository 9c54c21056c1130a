"""End of a batch."""

from __future__ import annotations

from gateway.jobs.routing.arrivals import Arrivals
from gateway.jobs.routing.policies.batch_tail import QUIET_SECONDS, critical_head
from gateway.jobs.routing.policies.least_work import LeastWork
from gateway.jobs.routing.snapshot import BackendView, Board, Head, Snapshot
from tests.support.routing import KnownCosts, head

HELD = frozenset({"short", "long"})
VIEWS = [BackendView(name, 1, held=HELD, keeps_several=True) for name in "ab"]


def waiting(*heads: Head, quiet: float = 1e4) -> Snapshot:
    arrivals = Arrivals()
    arrivals.arrived(0.0)
    return Snapshot(quiet, Board(VIEWS), heads, KnownCosts(), heads, arrivals)


def test_long_jobs_start_in_time() -> None:
    # Of 1550 seconds of work on two backends, three long jobs take 1000, and all take 775.
    short, long = head("short", 10, count=5), head("long", 500, count=3)
    assert critical_head(waiting(short, long)) is long
    choice = LeastWork().choose(waiting(short, long))
    assert choice is not None
    assert choice.head is long


def test_short_jobs_go_first_as_long_as_they_may() -> None:
    short, long = head("short", 10, count=200), head("long", 500, count=2)
    assert critical_head(waiting(short, long)) is None
    choice = LeastWork().choose(waiting(short, long))
    assert choice is not None
    assert choice.head is short


def test_a_stream_is_no_batch() -> None:
    short, long = head("short", 10), head("long", 20, count=3)
    assert critical_head(waiting(short, long, quiet=QUIET_SECONDS)) is long
    assert critical_head(waiting(short, long, quiet=QUIET_SECONDS - 1.0)) is None
    # Nor is a batch whose work takes much longer than nothing came.
    assert critical_head(waiting(head("short", 10, count=5), head("long", 500, count=3), quiet=100.0)) is None


def test_more_is_likely_to_come() -> None:
    snapshot = waiting(head("short", 10, count=5), head("long", 500, count=3))
    assert snapshot.arrivals is not None
    for at in (600.0, 1_200.0, 1_800.0):
        snapshot.arrivals.arrived(at)
    assert critical_head(snapshot._replace(now=2_200.0)) is None
    assert critical_head(snapshot._replace(now=9_000.0)) is not None
    assert critical_head(snapshot._replace(arrivals=None)) is None


def test_no_precedence_over_another_tenant() -> None:
    short, long = head("short", 10, count=5), head("long", 500, count=3, tenant="flood", lead=50.0)
    assert critical_head(waiting(short, long)) is None
    assert critical_head(waiting(short, head("long", 500, count=3, able="a"))) is None
    assert critical_head(waiting(head("long", 500, count=2))) is None
