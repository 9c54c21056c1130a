"""Ledgers on paper: a store in memory, and a state machine of what happens to jobs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.bus import LocalBus
from gateway.jobs.state.history import History
from gateway.jobs.state.job import ENDED, Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.submission import read
from gateway.jobs.state.transitions import PLACED, TRANSITIONS, IllegalMove, Move, State
from gateway.store.protocol import Change
from tests.support.workflows import slow


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


def new_ledger(bus: LocalBus | None = None) -> Ledger:
    """A ledger on paper."""
    paper: Any = Paper()
    return Ledger(paper, bus or LocalBus(), History(paper, 100, 10_000_000), "gateway")


def admit(ledger: Ledger, tenant: str = "t", **more: Any) -> Job:
    """Accept a prompt."""
    return ledger.admit(tenant, read(json.dumps({"prompt": slow(), **more}).encode()), ["2"])


def loading(image: str) -> dict[str, Any]:
    """Nodes that load an image, twice."""
    return {node_id: {"class_type": "LoadImage", "inputs": {"image": image}} for node_id in ("8", "9")}


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

    @rule(tenant=st.sampled_from("ab"), front=st.booleans(), priority=st.sampled_from([0, 0, 2]))
    def accept(self, tenant: str, front: bool, priority: int) -> None:
        """A prompt comes."""
        self.all.append(self.admitted(tenant, front, priority))

    def admitted(self, tenant: str, front: bool, priority: int) -> Job:
        """Accept one."""
        prompt = slow() | loading(f"{len(self.all) % 3}.png")
        return admit(self.ledger, tenant, front=front, prompt=prompt, extra_data={"gateway_priority": priority})

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
            assert (before[0], move) not in TRANSITIONS
            assert (job.state, job.backend) == before
        else:
            assert job.state is TRANSITIONS[before[0], move]

    def _carry_out(self, job: Job, move: Move, backend: str) -> None:
        match move:
            case Move.HOLD:
                self.ledger.hold(job)
            case Move.SEND:
                self.ledger.send(job, backend)
                assert job.assignment is not None
                self.ledger.offering(job.assignment)
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
        waiting = self.ledger.waiting.jobs()
        assert len(waiting) == len(set(waiting)) == len(self.ledger.waiting)
        assert [job.priority for job in waiting] == sorted((job.priority for job in waiting), reverse=True)
        for tenant in "ab":
            numbers = [(-job.priority, job.number) for job in waiting if job.tenant == tenant]
            assert numbers == sorted(numbers)
        assert all(bool(job.charged) == (job.state in PLACED) for job in open_jobs)
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
            assert all(self.ledger.find_upstream(backend, job.upstream_id) is job for job in there)
            assert not any(self.ledger.orphans.has(backend, job.upstream_id) for job in there)
            given_up = [each for job in self.all for each in job.given_up if each.backend == backend]
            assert set(self.ledger.orphans.on(backend)) >= {each.upstream_id for each in given_up}
            assert not any(self.ledger.find_upstream(backend, each.upstream_id) for each in given_up)
            assert set(self.ledger.jobs_on(backend)) == set(there)
            assert all(job.state in PLACED for job in there)
            queued = sum(job.state in (State.SENDING, State.PENDING) for job in there)
            assert self.ledger.load(backend) == (queued, sum(job.state is State.RUNNING for job in there))


def raise_if_legal(job: Job, move: Move) -> None:
    """`taken` is also told of a job that runs already; as a move it is not one."""
    raise IllegalMove(f"{job.state} {move}")
