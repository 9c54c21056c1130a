"""A job's life: the table, and what clients read of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.jobs.admission import read
from gateway.jobs.history import History
from gateway.jobs.job import ENDED, PLACED, Job, State
from gateway.jobs.ledger import LIFE, IllegalMove, Ledger, Move
from gateway.store.local_bus import LocalBus
from gateway.store.protocol import Change, HistoryRecord, HistoryRemoval, JobRecord
from tests.workflows import slow


class Paper:
    """A journal that remembers what was written, in memory."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def write(self, changes: Sequence[Change]) -> Any:
        """Remember."""
        self.changes += changes
        done: asyncio.Future[None] = asyncio.Future(loop=_LOOP)
        done.set_result(None)
        return done

    try_write = write


_LOOP = asyncio.new_event_loop()
# How often the models of a life are tried; without it few times enough for every run of the tests.
RUNS = int(os.environ.get("MODEL_RUNS", "0"))


def new_ledger() -> Ledger:
    """A ledger on paper."""
    paper: Any = Paper()
    return Ledger(paper, LocalBus(), History(paper, 100, 10_000_000), "gateway")


def admit(ledger: Ledger, tenant: str = "t", **more: Any) -> Job:
    """Accept a prompt."""
    return ledger.admit(tenant, read(json.dumps({"prompt": slow(), **more}).encode()), ["2"])


def loading(image: str) -> dict[str, Any]:
    """Nodes that load an image, twice."""
    return {node_id: {"class_type": "LoadImage", "inputs": {"image": image}} for node_id in ("8", "9")}


def test_every_state_but_the_last_ones_leads_somewhere() -> None:
    sources = {state for state, _ in LIFE}
    assert sources == set(State) - ENDED
    reachable, frontier = {State.ACCEPTED}, [State.ACCEPTED]
    while frontier:
        state = frontier.pop()
        for (source, _), target in LIFE.items():
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
    ledger.hold(second)
    shown = json.loads(ledger.queue_json("t"))
    assert [item[:2] for item in shown["queue_running"]] == [[0, first.prompt_id]]
    (item,) = shown["queue_pending"]
    assert item[:3] == [1, second.prompt_id, slow()]
    assert item[3] == {"k": 1, "client_id": "c", "create_time": second.create_time}
    assert item[4] == ["2"]
    assert json.loads(ledger.queue_json("other")) == {"queue_running": [], "queue_pending": []}


def test_the_same_id_of_two_tenants_goes_upstream_under_two_names() -> None:
    ledger = new_ledger()
    prompt_id = "11111111-2222-4333-8444-555555555555"
    mine, theirs = admit(ledger, "a", prompt_id=prompt_id), admit(ledger, "b", prompt_id=prompt_id)
    assert mine.prompt_id == theirs.prompt_id == prompt_id
    assert mine.upstream_id != theirs.upstream_id


def test_a_cancelled_jobs_id_is_not_used_again_upstream_until_its_copy_is_gone() -> None:
    ledger = new_ledger()
    prompt_id = "11111111-2222-4333-8444-555555555555"
    job = admit(ledger, prompt_id=prompt_id)
    ledger.send(job, "b1")
    assert ledger.cancel(job)[0] == "b1"
    assert ledger.is_copy("b1", prompt_id)
    again = admit(ledger, prompt_id=prompt_id)
    assert again.upstream_id != prompt_id


def test_a_backend_that_stops_a_copy_gets_the_job_under_another_name() -> None:
    """What it says of the copy's end would else end the job."""
    ledger = new_ledger()
    job = admit(ledger)
    ledger.send(job, "b1")
    ledger.copies.add("b1", job.upstream_id)
    ledger.lose(job)
    ledger.send(job, "b1")
    assert job.upstream_id != job.prompt_id
    assert ledger.find_upstream("b1", job.prompt_id) is None
    assert ledger.is_copy("b1", job.prompt_id)


def test_a_copy_that_is_wanted_again_is_none() -> None:
    ledger = new_ledger()
    job = admit(ledger)
    ledger.send(job, "b1")
    ledger.copies.add("b1", job.upstream_id)
    ledger.lose(job)
    ledger.copies.remove("b1", job.upstream_id)
    ledger.send(job, "b1")
    assert ledger.find_upstream("b1", job.prompt_id) is job
    assert not ledger.is_copy("b1", job.prompt_id)


def test_a_job_that_is_lost_while_its_end_is_written_stays_in_the_journal() -> None:
    """The entry that was written took it out of the open jobs: a restart would else know of neither."""
    paper: Any = Paper()
    ledger = Ledger(paper, LocalBus(), History(paper, 100, 10_000_000), "gateway")
    job = admit(ledger)
    ledger.send(job, "b1")
    ledger.collect(job)
    ending = ledger.finish(job, "success", b"{}", b"{}")
    ending_task = _LOOP.create_task(ending)
    _LOOP.call_soon(ledger.lose, job)
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
    assert job.state is State.WAITING
    assert [type(change) for change in paper.changes[-2:]] == [HistoryRemoval, JobRecord]


class LedgerMachine(RuleBasedStateMachine):
    """Random lives: whatever happens, the ledger's counts and indexes are those of its jobs."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = new_ledger()
        self.all: list[Job] = []

    def pick(self, index: int, *states: State) -> Job | None:
        """One of the jobs in some states."""
        fitting = [job for job in self.all if job.state in states]
        return fitting[index % len(fitting)] if fitting else None

    @rule(tenant=st.sampled_from("ab"), front=st.booleans())
    def accept(self, tenant: str, front: bool) -> None:
        """A prompt comes."""
        self.all.append(self.admitted(tenant, front))

    def admitted(self, tenant: str, front: bool) -> Job:
        """Accept one."""
        return admit(self.ledger, tenant, front=front, prompt=slow() | loading(f"{len(self.all) % 3}.png"))

    @precondition(lambda self: self.all)
    @rule(index=st.integers(0, 99), move=st.sampled_from(list(Move)), backend=st.sampled_from(["b1", "b2"]))
    def move(self, index: int, move: Move, backend: str) -> None:
        """Something happens to a job: it follows the table, or is refused and leaves no trace."""
        job = self.all[index % len(self.all)]
        before = (job.state, job.backend)
        if job.state in ENDED:
            return
        try:
            self._carry_out(job, move, backend)
        except IllegalMove:
            assert (before[0], move) not in LIFE
            assert (job.state, job.backend) == before
        else:
            assert job.state is LIFE[before[0], move]

    def _carry_out(self, job: Job, move: Move, backend: str) -> None:
        match move:
            case Move.HOLD:
                self.ledger.hold(job)
            case Move.SEND:
                self.ledger.send(job, backend)
            case Move.TAKE:
                if job.state is not State.SENDING:
                    raise_if_legal(job, move)
                self.ledger.taken(job, job.upstream_id, b"{}")
            case Move.START:
                self.ledger.start(job, 1)
            case Move.COLLECT:
                self.ledger.collect(job)
            case Move.LOSE:
                self.ledger.lose(job)
            case Move.RECALL:
                self.ledger.recall(job)
            case Move.CANCEL if job.state is not State.COLLECTING:
                self.ledger.cancel(job)
            case _:
                outcome = {Move.SUCCEED: "success", Move.FAIL: "error", Move.CANCEL: "cancelled"}[move]
                _LOOP.run_until_complete(self.ledger.finish(job, outcome, b"{}", b"{}"))

    @invariant()
    def counts_are_right(self) -> None:
        """Every index says the same."""
        open_jobs = [job for job in self.all if job.state not in ENDED]
        assert len(self.ledger) == len(open_jobs)
        assert len(self.ledger.waiting) == sum(job.state is State.WAITING for job in open_jobs)
        waiting = list(self.ledger.waiting.jobs())
        assert [j.tag for j in waiting] == sorted(j.tag for j in waiting)
        for tenant in "ab":
            assert self.ledger.remaining(tenant) == sum(job.tenant == tenant for job in open_jobs)
            shown = json.loads(self.ledger.queue_json(tenant))
            ids = [item[1] for items in shown.values() for item in items]
            assert sorted(ids) == sorted(job.prompt_id for job in open_jobs if job.tenant == tenant)
        named = {(job.tenant, file.ref) for job in open_jobs for file in job.submission.files if file.ref is not None}
        assert len(self.ledger.named) == len(named)
        assert all(self.ledger.named.has(*file) for file in named)
        for backend in ("b1", "b2"):
            there = [job for job in open_jobs if job.backend == backend]
            assert set(self.ledger.jobs_on(backend)) == set(there)
            assert all(job.state in PLACED for job in there)
            queued = sum(job.state in (State.SENDING, State.PENDING) for job in there)
            assert self.ledger.load(backend) == (queued, sum(job.state is State.RUNNING for job in there))


def raise_if_legal(job: Job, move: Move) -> None:
    """`taken` is also told of a job that runs already; as a move it is not one."""
    raise IllegalMove(f"{job.state} {move}")


LedgerMachine.TestCase.settings = settings(max_examples=RUNS or 150, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
