"""Fair share of jobs by their seconds: weights, corrections, priorities and ageing; and rounds if all take equally."""

from __future__ import annotations

import asyncio
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.jobs.routing.shares import Shares
from gateway.jobs.state.fair_queue import FairShare, Queued, position_in
from gateway.jobs.state.job import USUAL_SECONDS, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import read
from gateway.jobs.state.transitions import State
from tests.support.ledgers import new_ledger


def admit(ledger: Ledger, tenant: str, priority: int = 0, **more: Any) -> Job:
    """Accept a prompt."""
    body = {"prompt": {}, "extra_data": {"gateway_priority": priority}, **more}
    return ledger.admit(tenant, read(json.dumps(body).encode()), [])


def hold(ledger: Ledger, tenant: str, priority: int = 0, **more: Any) -> Job:
    """Accept a prompt that waits."""
    job = admit(ledger, tenant, priority, **more)
    ledger.hold(job)
    return job


class Rounds:
    """Reference: each tenant has one turn in each round; a tenant's second turn begins a new one."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}

    def serve(self, tenant: str) -> None:
        """Note a turn."""
        if tenant in self.served:
            self.served.clear()
        self.served[tenant] = len(self.served)

    def turn(self, tenant: str, place: int) -> tuple[int, float]:
        """Return the turn of a tenant's job at a place of its own order."""
        order = self.served.get(tenant)
        return (place, math.inf) if order is None else (place + 1, order)


_LOOP = asyncio.new_event_loop()

STEPS = st.lists(st.one_of(st.just(""), st.sampled_from("abcd")), max_size=60)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_equal_jobs_that_wait_take_turns(steps: list[str]) -> None:
    ledger, rounds = new_ledger(), Rounds()
    # A job that stays open, so that the shares are never forgotten.
    admit(ledger, "other")
    for step in steps:
        if step:
            hold(ledger, step)
        elif len(ledger.waiting):
            rounds.serve(ledger.waiting.jobs()[0].tenant)
            ledger.send(ledger.waiting.jobs()[0], "b")
        waiting = [job for job in ledger.jobs() if job.state is State.WAITING]
        own: dict[str, int] = {}
        turns = []
        for job in waiting:
            turns.append((rounds.turn(job.tenant, own.setdefault(job.tenant, 0)), job.accepted_at, job))
            own[job.tenant] += 1
        assert ledger.waiting.jobs() == [job for _, _, job in sorted(turns, key=lambda each: each[:2])]


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_equal_jobs_in_a_backends_queue_take_turns(steps: list[str]) -> None:
    share, rounds, queue, wanted = FairShare(), Rounds(), list[Queued](), list[Queued]()
    for number, tenant in enumerate(steps):
        if not tenant:
            if queue:
                served = queue.pop(0)
                del wanted[0]
                rounds.serve(served.tenant)
                share.started(admit(new_ledger(), served.tenant), "b")
            continue
        joining = Queued(tenant, number, share.key_among(queue, "b", Queued(tenant, number)))
        queue.append(joining)
        queue.sort(key=lambda each: each.queue_key)
        own = [place for place, each in enumerate(wanted) if each.tenant == tenant]
        joins_at, counts = own[-1] + 1 if own else 0, dict.fromkeys("abcd", 0)
        for place, each in enumerate(wanted):
            if place >= joins_at and rounds.turn(tenant, counts[tenant]) >= rounds.turn(
                each.tenant, counts[each.tenant]
            ):
                joins_at = place + 1
            counts[each.tenant] += 1
        wanted.insert(joins_at, joining)
        assert queue == wanted


class Fleet:
    """Backends that run what the ledger sends, first come first served; each holds one job more than it runs."""

    def __init__(self, backends: int, real: dict[str, float], usual: float = USUAL_SECONDS) -> None:
        self.ledger = new_ledger()
        self.ledger.seconds_of = lambda _: usual
        self.random, self.now, self.real = random.Random(7), 0.0, real
        self.got = dict.fromkeys(real, 0.0)
        self.backlog = 8
        self.running: dict[str, tuple[Job, float, float] | None] = {f"b{n}": None for n in range(backends)}

    def run(self, seconds: float) -> None:
        """Let time go on, while all tenants have jobs that wait."""
        while self.now < seconds:
            for tenant in self.real:
                for _ in range(self.backlog - self.ledger.unstarted_count(tenant)):
                    hold(self.ledger, tenant)
            for name, running in self.running.items():
                if running is not None and running[1] <= self.now:
                    self._end(name, *running)
                while sum(self.ledger.load(name)) < 2:
                    self.ledger.send(next(self.ledger.waiting.in_turn(set(self.real))), name)
                if self.running[name] is None:
                    self._start(name)
            self.now = min(each[1] for each in self.running.values() if each is not None)

    def _start(self, name: str) -> None:
        pending = [job for job in self.ledger.jobs_on(name) if job.state is State.SENDING]
        job = min(pending, key=lambda job: job.queue_key)
        self.ledger.start(job, 0)
        seconds = self.random.uniform(0.3, 1.7) * self.real[job.tenant]
        self.running[name] = job, self.now + seconds, seconds

    def _end(self, name: str, job: Job, _: float, seconds: float) -> None:
        self.ledger.collect(job)
        _LOOP.run_until_complete(self.ledger.finish(job, "success", b"{}", b"{}"))
        self.ledger.share.correct(job, seconds)
        self.got[job.tenant] += seconds
        self.running[name] = None


@pytest.mark.parametrize("usual", [1.0, 10.0, 60.0])
def test_shares_converge_to_weights_whatever_was_expected(usual: float) -> None:
    real, weights = {"long": 40.0, "short": 2.0, "heavy": 8.0}, {"long": 1.0, "short": 1.0, "heavy": 3.0}
    fleet = Fleet(3, real, usual)
    fleet.ledger.share.weight = weights.__getitem__
    fleet.run(4_000)
    whole = sum(fleet.got.values())
    for tenant, weight in weights.items():
        assert fleet.got[tenant] / whole == pytest.approx(weight / 5, abs=0.03)


def test_a_flood_delays_a_single_job_by_one_job_a_backend() -> None:
    ledger = new_ledger()
    for _ in range(500):
        hold(ledger, "ben")
    for _, name in zip(range(30), ("b0", "b1", "b2") * 10, strict=False):
        ledger.send(next(ledger.waiting.in_turn({"ben"})), name)
    for name in ("b0", "b1", "b2"):
        ledger.start(min(ledger.jobs_on(name), key=lambda job: job.queue_key), 0)
    single = hold(ledger, "anna")
    assert ledger.waiting.jobs()[0] is single
    ledger.send(single, "b1")
    pending = [job for job in ledger.jobs_on("b1") if job.state is State.SENDING]
    assert min(pending, key=lambda job: job.queue_key) is single


def test_a_job_is_charged_for_what_it_ran_and_refunded_before() -> None:
    ledger = new_ledger()
    share, other = ledger.share, admit(ledger, "ben")
    assert other.expected_seconds == USUAL_SECONDS
    jobs = [admit(ledger, "anna") for _ in range(4)]
    for job in jobs:
        ledger.send(job, "b")
    # From one backend to the next it is charged once.
    ledger.send(jobs[0], "b2")
    assert share.turn("anna")[0] == 40.0
    ledger.lose(jobs[0])
    ledger.withdraw(jobs[1])
    ledger.taken(jobs[2], jobs[2].upstream_id, b"{}")
    ledger.recall(jobs[2])
    assert share.turn("anna")[0] == 10.0
    assert [job.charged for job in jobs] == [0.0, 0.0, 0.0, 10.0]
    ledger.start(jobs[3], 0)
    share.correct(jobs[3], 25.0)
    share.correct(jobs[3], 25.0)
    assert jobs[3].charged == 25.0


def test_a_cancelled_run_counts_until_then() -> None:
    ledger = new_ledger()
    admit(ledger, "ben")
    job = admit(ledger, "anna")
    ledger.send(job, "b")
    ledger.start(job, 0)
    assert job.started_at is not None
    job.started_at -= 100.0
    ledger.cancel(job)
    assert ledger.share.turn("anna")[0] == pytest.approx(100.0, abs=1.0)


def test_all_is_forgotten_when_nothing_is_left_to_share() -> None:
    ledger = new_ledger()
    first = admit(ledger, "anna")
    ledger.send(first, "b")
    ledger.cancel(first)
    assert ledger.share.turn("anna") == (0.0, math.inf)


# -- priorities --------------------------------------------------------------------------------------------------


def test_a_higher_priority_goes_first_among_those_of_all_tenants() -> None:
    ledger = new_ledger()
    low, again = hold(ledger, "anna"), hold(ledger, "anna", front=True)
    mid, high, other = hold(ledger, "anna", 2), hold(ledger, "ben", 3), hold(ledger, "carol", 2)
    assert ledger.waiting.jobs() == [high, mid, other, again, low]
    for job in (low, mid, high, other, again):
        ledger.send(job, "b")
    assert sorted(ledger.jobs_on("b"), key=lambda job: job.queue_key) == [high, mid, other, again, low]


def test_a_tenants_own_jobs_of_one_priority_go_by_number_on_a_backend() -> None:
    ledger = new_ledger()
    jobs = [admit(ledger, "anna", priority, number=number) for priority, number in ((0, 5), (1, 9), (1, 2), (0, 1))]
    for job in jobs:
        ledger.send(job, "b")
    assert sorted(ledger.jobs_on("b"), key=lambda job: job.queue_key) == [jobs[2], jobs[1], jobs[3], jobs[0]]


def older(job: Job, seconds: float) -> Job:
    """Let a job have waited."""
    job.accepted_at -= seconds
    return job


def test_a_job_that_waits_gains_steps_against_other_priorities_alone() -> None:
    ledger = new_ledger()
    ledger.share.priority_seconds = 100.0
    flood = [older(hold(ledger, "ben"), 1_000.0) for _ in range(3)]
    single = hold(ledger, "anna")
    # The flood has waited for long, and takes turns with the new job all the same.
    assert ledger.waiting.jobs() == [flood[0], single, flood[1], flood[2]]
    high = hold(ledger, "carol", 9)
    # Its first has gained ten steps; then the single job's turn is next, and it has gained none.
    assert ledger.waiting.jobs()[:3] == [flood[0], high, single]
    older(high, 200.0)
    assert ledger.waiting.jobs()[:2] == [high, flood[0]]


def test_a_job_that_waits_gains_steps_on_a_backend_too() -> None:
    ledger = new_ledger()
    low, high = hold(ledger, "ben"), hold(ledger, "carol", 2)
    ledger.send(older(low, 3 * ledger.share.priority_seconds), "b")
    ledger.send(high, "b")
    assert high.queue_key > low.queue_key
    ledger.send(other := hold(ledger, "dave", 4), "b")
    assert other.queue_key < low.queue_key


def test_a_job_before_its_tenants_other_one_takes_its_turn() -> None:
    """It passes no job that the other one did not pass, even if its tenant's turn has come meanwhile."""
    shares, queue = Shares(), [Queued("anna", 1), Queued("ben", 5)]
    shares.charge("anna", 10.0)
    assert position_in(queue, shares, Queued("ben", 2)) == 1
    assert position_in(queue[:1], shares, Queued("ben", 2)) == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_no_job_is_overtaken_for_ever(priority: int, tenants: int, waits_there: bool) -> None:
    """More jobs of a higher priority come all the time than can run."""
    ledger = new_ledger()
    ledger.share.priority_seconds = 30.0
    low, came, steps = hold(ledger, "low"), dict[Job, int](), 0
    if waits_there:
        ledger.send(low, "b")
        ledger.taken(low, low.upstream_id, b"{}")
    while low.state is not State.RUNNING:
        came |= {hold(ledger, f"high-{n}", priority): steps for n in range(tenants)}
        while sum(ledger.load("b")) < 4 and len(ledger.waiting):
            ledger.send(ledger.waiting.jobs()[0], "b")
        pending = [job for job in ledger.jobs_on("b") if job.state is not State.RUNNING]
        job = min(pending, key=lambda job: job.queue_key)
        ledger.start(job, 0)
        # A job that comes so much later does not pass the one of low priority.
        assert job is low or came[job] * 10.0 <= (priority + 1) * 30.0
        for job in ledger.jobs():
            older(job, 10.0)
            if job.state is State.RUNNING and job is not low:
                ledger.cancel(job)
        steps += 1
