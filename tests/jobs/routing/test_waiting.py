"""Waiting jobs by tenant and signature."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.routing.shares import Shares
from gateway.jobs.routing.signature import Workload
from gateway.jobs.routing.waiting import MAX_HEADS, Ahead, WaitingHeads, WaitingJob
from tests.support.workloads import workload


def by_steps(work: Workload) -> float:
    return float(work.signature.steps)


def waiting(ageing: float = 0.1) -> WaitingHeads:
    return WaitingHeads(Shares(), by_steps, ageing)


def test_a_head_stands_for_all_that_are_alike() -> None:
    jobs = waiting()
    for n in range(5):
        jobs.add(WaitingJob(f"job-{n}", "one", workload("sdxl"), 10 - n, n))
    (head,) = jobs.heads()
    assert (head.jobs, head.tenant, head.lead) == (5, "one", 0.0)
    # The lowest number is first, whenever it came.
    assert jobs.first(head).job_id == "job-4"
    jobs.remove("job-4")
    jobs.remove("unknown")
    assert jobs.first(jobs.heads()[0]).job_id == "job-3"
    assert len(jobs) == 4


def test_short_jobs_first_until_long_ones_have_waited() -> None:
    jobs = waiting(ageing=0.1)
    jobs.add(WaitingJob("long", "one", workload("m", 100), 1, 0.0))
    jobs.add(WaitingJob("short", "one", workload("m", 10), 2, 100.0))
    assert [jobs.first(head).job_id for head in jobs.heads()] == ["short", "long"]
    jobs.remove("short")
    jobs.add(WaitingJob("late", "one", workload("m", 10), 3, 901.0))
    assert [jobs.first(head).job_id for head in jobs.heads()] == ["long", "late"]


def test_jobs_that_may_run_elsewhere_have_heads_of_their_own() -> None:
    jobs = waiting()
    jobs.add(WaitingJob("a", "one", workload("m"), 1, 0.0))
    jobs.add(WaitingJob("b", "one", workload("m"), 2, 0.0, frozenset({"gpu"})))
    assert sorted(jobs.first(head).job_id for head in jobs.heads()) == ["a", "b"]


def test_a_tenant_whose_jobs_wait_elsewhere_has_no_head() -> None:
    shares = Shares()
    jobs = WaitingHeads(shares, by_steps, 0.1)
    for tenant in ("elsewhere", "both"):
        shares.waits(tenant)
    jobs.add(WaitingJob("a", "both", workload("m"), 1, 0.0))
    assert [head.tenant for head in jobs.heads()] == [head.tenant for head in jobs.all_heads()] == ["both"]
    assert jobs.ahead("a") == Ahead(0, 0.0)


def test_heads_of_warm_models_compete() -> None:
    jobs = waiting()
    for n in range(40):
        jobs.add(WaitingJob(str(n), "one", workload(f"model-{n}", 10 + n), n, 0.0))
    assert "model-39" not in {head.work.signature.model for head in jobs.heads()}
    assert "model-39" in {head.work.signature.model for head in jobs.heads(["model-39"])}


_jobs = st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y"]), st.integers(1, 3), st.integers(0, 5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(_jobs, st.integers(0, 30)), max_size=60))
def test_the_heads_are_the_first_of_all_that_wait(steps: list[tuple[str, str, int, int] | int]) -> None:
    jobs, expected = waiting(), dict[str, WaitingJob]()
    for n, step in enumerate(steps):
        if isinstance(step, int):
            jobs.remove(str(step))
            expected.pop(str(step), None)
        else:
            tenant, model, steps_, number = step
            job = WaitingJob(str(n), tenant, workload(model, steps_), number, float(n))
            jobs.add(job)
            expected[str(n)] = job
    assert len(jobs) == len(expected)
    heads = jobs.heads()
    assert len(heads) <= MAX_HEADS
    assert {head.tenant for head in heads} == {job.tenant for job in expected.values()}
    for head in heads:
        same = [job for job in expected.values() if job.tenant == head.tenant and job.work.key == head.work.key]
        assert head.jobs == len(same)
        assert jobs.first(head).number == min(job.number for job in same)


def test_jobs_for_a_full_backend_hide_no_others() -> None:
    jobs = waiting()
    for n in range(30):
        jobs.add(WaitingJob(f"full-{n}", "one", workload(f"m{n}", 1 + n), n, 0.0, frozenset({"full"})))
    jobs.add(WaitingJob("free", "one", workload("m", 500), 99, 0.0, frozenset({"free"})))
    heads = jobs.heads((), lambda able: "free" in able)
    assert [jobs.first(head).job_id for head in heads] == ["free"]
    assert "free" not in [jobs.first(head).job_id for head in jobs.heads()]


def test_jobs_for_a_dead_backend_hide_no_others_however_many_they_are() -> None:
    def is_open(able: frozenset[str]) -> bool:
        return "dead" not in able

    jobs, dead = waiting(), frozenset({"dead"})
    for n in range(100):
        jobs.add(WaitingJob(f"model-{n}", "one", workload(f"m{n}"), n, 0.0, dead))
        jobs.add(WaitingJob(f"tenant-{n}", f"other-{n}", workload("m"), n, 0.0, dead))
    jobs.add(WaitingJob("front", "one", workload("m"), -1, 0.0, dead, is_ordered=True))
    jobs.add(WaitingJob("alive", "one", workload("m", 500), 999, 0.0))
    jobs.add(WaitingJob("last", "zoe", workload("m", 500), 999, 0.0))
    assert [jobs.first(head).job_id for head in jobs.heads((), is_open)] == ["alive", "last"]
    jobs.add(WaitingJob("second", "one", workload("m", 600), -0.5, 0.0, is_ordered=True))
    assert [jobs.first(head).job_id for head in jobs.heads((), is_open)] == ["second", "last"]
    for job_id in ("alive", "second", "last"):
        jobs.remove(job_id)
    assert not jobs.heads((), is_open)


def test_no_rule_for_a_batch_changes_an_order_that_clients_gave() -> None:
    jobs = waiting()
    jobs.add(WaitingJob("a", "one", workload("m"), 1, 0.0))
    assert jobs.all_heads()
    jobs.add(WaitingJob("b", "one", workload("m", 5), -1, 0.0, is_ordered=True))
    assert not jobs.all_heads()


def test_several_tenants_have_heads() -> None:
    jobs = waiting()
    for tenant in ("one", "two", "three", "four"):
        for n in range(20):
            jobs.add(WaitingJob(f"{tenant}-{n}", tenant, workload(f"m{n}", 1 + n), n, 0.0))
    assert {head.tenant for head in jobs.heads()} == {"one", "two", "three", "four"}


def test_jobs_ahead_are_the_tenants_own_and_a_fair_share_of_others() -> None:
    jobs = waiting(ageing=0.0)
    for n in range(10):
        jobs.add(WaitingJob(f"short-{n}", "one", workload("m", 10), n, 0.0))
        jobs.add(WaitingJob(f"flood-{n}", "two", workload("m", 100), n, 0.0))
    jobs.add(WaitingJob("long", "one", workload("m", 50), 99, 0.0))
    assert jobs.ahead("short-0") == Ahead(0, 0.0)
    # Three of its own before it, and as many seconds of the other tenant's.
    assert jobs.ahead("short-3") == Ahead(3, 60.0)
    assert jobs.ahead("long") == Ahead(11, 200.0)
    # The flood's last job waits for all of the other tenant's.
    assert jobs.ahead("flood-9") == Ahead(20, 1_050.0)


def test_its_own_jobs_ahead_take_a_few_look_ups() -> None:
    jobs = waiting(ageing=0.0)
    for n in range(10):
        jobs.add(WaitingJob(f"short-{n}", "one", workload("m", 10), n, 0.0))
        jobs.add(WaitingJob(f"flood-{n}", "two", workload("m", 100), n, 0.0))
    jobs.add(WaitingJob("long", "one", workload("m", 50), 99, 0.0))
    assert jobs.own_ahead("short-3") == Ahead(3, 30.0)
    assert jobs.own_ahead("long") == Ahead(10, 100.0)
    jobs.remove("short-0")
    assert jobs.own_ahead("long") == Ahead(9, 90.0)
    # Of many lanes and groups, it counts some.
    for n in range(1, 2_001):
        jobs.add(WaitingJob(f"job-{n}", "three", workload(f"m{n % 20}", n), n, 0.0))
    found = jobs.own_ahead("job-1000")
    assert found.jobs == pytest.approx(999, rel=0.1)
    assert found.seconds == pytest.approx(999 * 500, rel=0.15)


def test_the_counts_of_lanes_are_those_of_their_groups() -> None:
    jobs = waiting()
    for n in range(60):
        jobs.add(WaitingJob(f"job-{n}", "one", workload(f"m{n % 3}", 1 + n % 7), n, 0.0))
    for n in range(0, 60, 2):
        jobs.remove(f"job-{n}")
    for lane in jobs._tenants["one"].lanes.values():
        assert lane.jobs == sum(len(group.jobs) for _, group in lane.groups)
