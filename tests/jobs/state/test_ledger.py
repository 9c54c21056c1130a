"""A job's life: the table, and what clients read of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings

from gateway.bus import LocalBus
from gateway.jobs.state.history import History
from gateway.jobs.state.job import ENDED, Assignment, Delivery, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.transitions import TRANSITIONS, IllegalMove, Move, State
from gateway.store.protocol import Change, HistoryRecord, HistoryRemoval, JobRecord, JobRemoval
from tests.support.ledgers import _LOOP, RUNS, LedgerMachine, Paper, admit, new_ledger
from tests.support.workflows import slow


def test_every_state_but_the_last_ones_leads_somewhere() -> None:
    sources = {state for state, _ in TRANSITIONS}
    assert sources == set(State) - ENDED
    reachable, frontier = {State.ACCEPTED}, [State.ACCEPTED]
    while frontier:
        state = frontier.pop()
        for (source, _), target in TRANSITIONS.items():
            if source is state and target not in reachable:
                reachable.add(target)
                frontier.append(target)
    assert reachable == set(State)


def test_an_illegal_move_is_refused() -> None:
    ledger = new_ledger()
    job = admit(ledger)
    with pytest.raises(IllegalMove):
        ledger.start(job, 1)
    assert job.state is State.ACCEPTED


def test_what_queue_shows() -> None:
    ledger = new_ledger()
    first, second = admit(ledger), admit(ledger, client_id="c", extra_data={"k": 1})
    ledger.send(first, "b1")
    ledger.taken(first, first.upstream_id, b"{}")
    ledger.start(first, 5)
    ledger.begin(first)
    ledger.hold(second)
    shown = json.loads(ledger.queue_json("t"))
    assert [item[:2] for item in shown["queue_running"]] == [[0, first.prompt_id]]
    (item,) = shown["queue_pending"]
    assert item[:3] == [1, second.prompt_id, slow()]
    assert item[3] == {"k": 1, "client_id": "c", "create_time": second.create_time}
    assert item[4] == ["2"]
    assert json.loads(ledger.queue_json("other")) == {"queue_running": [], "queue_pending": []}


PROMPT_ID = "11111111-2222-4333-8444-555555555555"


def sent(ledger: Ledger, job: Job, backend: str = "b1") -> Assignment:
    """Send it, and let its backend have it."""
    ledger.send(job, backend)
    assert job.assignment is not None
    ledger.offering(job.assignment)
    ledger.offered(job.assignment, is_there=True)
    return job.assignment


def test_each_assignment_has_an_id_of_its_own() -> None:
    ledger = new_ledger()
    mine, theirs = (admit(ledger, tenant, prompt_id=PROMPT_ID) for tenant in "ab")
    assert mine.prompt_id == theirs.prompt_id == PROMPT_ID
    assert mine.upstream_id == theirs.upstream_id == ""
    ids = []
    for job in (mine, theirs, mine, mine):
        if job.state is not State.ACCEPTED:
            ledger.lose(job)
        ids.append(sent(ledger, job).upstream_id)
        assert ledger.find_upstream("b1", ids[-1]) is job
    assert len({*ids, PROMPT_ID}) == 5
    assert ledger.find_upstream("b2", ids[-1]) is None
    assert ledger.find_upstream("b1", ids[0]) is None


@pytest.mark.parametrize("move", [Move.LOSE, Move.RECALL, Move.HOLD, Move.SEND, Move.CANCEL, Move.FAIL])
@pytest.mark.parametrize("delivery", list(Delivery))
def test_what_a_backend_may_have_of_a_given_up_assignment_is_a_copy(move: Move, delivery: Delivery) -> None:
    """Unless it certainly never got it."""
    ledger = new_ledger()
    job = admit(ledger)
    ledger.send(job, "b1")
    former = job.assignment
    assert former is not None
    if delivery is not Delivery.NONE:
        ledger.offering(former)
    if delivery is Delivery.ARRIVED:
        ledger.offered(former, is_there=True)
    if move is Move.RECALL:
        ledger.taken(job, former.upstream_id, b"{}")
    carry_out(ledger, job, move)
    is_copy = delivery is not Delivery.NONE or move is Move.RECALL
    assert ledger.orphans.has("b1", former.upstream_id) is is_copy
    assert ledger.find_upstream("b1", former.upstream_id) is None
    assert job.given_up == ((former,) if is_copy else ())
    ledger.orphans.absent("b1", [former.upstream_id])
    # One that is on its way may come still.
    is_on_its_way = delivery is Delivery.UNDER_WAY and move is not Move.RECALL
    assert ledger.orphans.has("b1", former.upstream_id) is is_on_its_way
    ledger.offered(former, is_there=False)
    assert not ledger.orphans.has("b1", former.upstream_id)


def carry_out(ledger: Ledger, job: Job, move: Move) -> None:
    """Make a move that gives an assignment up."""
    match move:
        case Move.FAIL:
            _LOOP.run_until_complete(ledger.finish(job, "error", b"{}", b"{}"))
        case Move.SEND:
            ledger.send(job, "b2")
        case _:
            getattr(ledger, str(move))(job)


def test_what_ended_is_no_copy_and_its_id_means_nothing_else() -> None:
    ledger = new_ledger()
    job, other = admit(ledger), admit(ledger)
    ended = sent(ledger, job).upstream_id
    sent(ledger, other)
    ledger.collect(job)
    _LOOP.run_until_complete(ledger.finish(job, "success", b"{}", b"{}"))
    assert not ledger.orphans.has("b1", ended)
    assert not ledger.may_be_called(other, ended)
    # An end that was the machine's fault is one as well.
    failed = other.upstream_id
    ledger.collect(other)
    other.has_entry = True
    ledger.lose(other)
    assert not ledger.orphans.has("b1", failed)
    assert not other.given_up


def test_an_assignment_that_its_backend_has_still_is_taken_back() -> None:
    ledger = new_ledger()
    job = admit(ledger)
    former = sent(ledger, job)
    ledger.lose(job)
    sent(ledger, job, "b2")
    ledger.lose(job)
    assert [each.backend for each in job.given_up] == ["b1", "b2"]
    ledger.adopt(job, former)
    assert job.assignment is former
    assert ledger.find_upstream("b1", former.upstream_id) is job
    assert [each.backend for each in job.given_up] == ["b2"]
    assert not ledger.orphans.has("b1", former.upstream_id)
    assert ledger.load("b1") == (1, 0)


@pytest.mark.parametrize(
    "upstream_id", [None, 5, ["x"], "", "x", "A" + PROMPT_ID[1:], PROMPT_ID + "\n", "a" * 36, {}, True]
)
def test_an_id_of_the_backends_own_must_be_one(upstream_id: Any) -> None:
    ledger = new_ledger()
    job = admit(ledger)
    sent(ledger, job)
    assert not ledger.may_be_called(job, upstream_id)
    assert ledger.may_be_called(job, PROMPT_ID)


def test_an_assignment_that_is_given_up_for_good_is_a_copy_and_not_taken_back() -> None:
    ledger = new_ledger()
    job = admit(ledger)
    former = sent(ledger, job)
    ledger.lose(job, for_good=True)
    assert ledger.orphans.has("b1", former.upstream_id)
    assert not job.given_up


def test_an_id_of_the_backends_own_must_be_nobody_elses() -> None:
    ledger = new_ledger()
    job, other, cancelled = admit(ledger), admit(ledger), admit(ledger)
    assignment = sent(ledger, job)
    assert not ledger.may_be_called(job, sent(ledger, other, "b2").upstream_id)
    copy = sent(ledger, cancelled, "b2").upstream_id
    ledger.cancel(cancelled)
    assert not ledger.may_be_called(job, copy)
    own = job.upstream_id
    ledger.taken(job, PROMPT_ID, b"{}")
    assert (job.upstream_id, assignment.mark) == (PROMPT_ID, own)
    assert ledger.find_upstream("b1", PROMPT_ID) is job
    assert ledger.find_upstream("b1", own) is None
    assert not ledger.may_be_called(other, PROMPT_ID)
    assert not ledger.may_be_called(other, own)


def test_what_a_backend_says_is_told_under_the_clients_id() -> None:
    ledger = new_ledger()
    job = admit(ledger)
    said = b'{"prompt_id": "x"}'
    assert job.translate(said) == said
    own = sent(ledger, job).upstream_id
    ledger.taken(job, PROMPT_ID, b"{}")
    assert job.translate(f"{own} {PROMPT_ID} {own}".encode()) == b" ".join([job.prompt_id.encode()] * 3)


@pytest.mark.parametrize(
    ("befalls", "state", "last"),
    [("lose", State.WAITING, [HistoryRemoval, JobRecord]), ("cancel", State.CANCELLED, [JobRemoval, HistoryRemoval])],
)
def test_a_job_that_is_lost_or_cancelled_while_its_end_is_written(befalls: str, state: State, last: list[type]) -> None:
    """Its entry leaves the journal. A lost job is put back there, because a restart would else know of neither."""
    paper: Any = Paper()
    ledger = Ledger(paper, LocalBus(), History(paper, 100, 10_000_000), "gateway")
    job = admit(ledger)
    ledger.send(job, "b1")
    ledger.collect(job)
    ending = ledger.finish(job, "success", b"{}", b"{}")
    ending_task = _LOOP.create_task(ending)
    _LOOP.call_soon(getattr(ledger, befalls), job)
    written = paper.write

    def write(changes: Sequence[Change]) -> Any:
        done = written(changes)
        if not isinstance(changes[0], HistoryRecord):
            return done
        late: asyncio.Future[None] = _LOOP.create_future()
        _LOOP.call_later(0.01, late.set_result, None)
        return late

    paper.write = write
    assert _LOOP.run_until_complete(ending_task) is False
    assert job.state is state
    assert ledger.history.find(*job.key) is None
    assert [type(change) for change in paper.changes[-2:]] == last


LedgerMachine.TestCase.settings = settings(max_examples=RUNS or 150, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


def test_of_its_tenants_waiting_jobs_those_of_higher_priority_or_a_lower_number_go_before() -> None:
    ledger = new_ledger()
    jobs = [admit(ledger, tenant) for tenant in "abab"]
    jobs += [admit(ledger, "a", front=True), admit(ledger, "a", extra_data={"gateway_priority": 2})]
    for job in jobs:
        ledger.hold(job)
    assert [ledger.waiting.before(job) for job in jobs] == [2, 0, 3, 1, 1, 0]
