"""Whatever instant a gateway dies at, the journal up to there is a state from which every job ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from gateway.bus import LocalBus
from gateway.jobs.state.history import History
from gateway.jobs.state.job import Job
from gateway.jobs.state.ledger import Ledger
from gateway.jobs.state.records import job_of
from gateway.jobs.state.transitions import State
from gateway.store.protocol import Change, HistoryRemoval, JobRecord, JobRemoval
from gateway.store.statements import apply, migrate
from tests.support.ledgers import _LOOP, RUNS, LedgerMachine, Paper, admit

BACKENDS = ("b1", "b2")
Key = tuple[str, str]


class Batches(Paper):
    """What was written, commit by commit."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Change]] = []

    def write(self, changes: Sequence[Change]) -> Any:
        """Remember, as one commit."""
        self.batches.append(list(changes))
        return super().write(changes)

    try_write = write


class JournalMachine(LedgerMachine):
    """Random lives, journalled as the dispatcher has them journalled; at the end each prefix is replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.paper = Batches()
        store: Any = self.paper
        self.ledger = Ledger(store, LocalBus(), History(store, 100, 10_000_000), "gateway")

    def admitted(self, tenant: str, front: bool, priority: int) -> Job:
        """Accept one; it is journalled once it is known where it goes."""
        job = admit(self.ledger, tenant, front=front, extra_data={"gateway_priority": priority})
        if front:
            self.ledger.hold(job)
        else:
            self.ledger.send(job, "b1")
        self.ledger.journal(job)
        return job

    @precondition(lambda self: self.all)
    @rule(index=st.integers(0, 99))
    def refuse(self, index: int) -> None:
        """A backend refuses it before its client has an answer."""
        job = self.pick(index, State.SENDING)
        if job is not None:
            self.ledger.withdraw(job)
            self.all.remove(job)

    def teardown(self) -> None:
        """Replay."""
        database = sqlite3.connect(":memory:", isolation_level=None)
        migrate(database)
        accepted: set[Key] = set()
        removed: set[Key] = set()
        for batch in self.paper.batches:
            for change in batch:
                apply(database, change)
                if isinstance(change, JobRecord):
                    accepted.add((change.tenant, change.prompt_id))
                elif isinstance(change, JobRemoval | HistoryRemoval):
                    removed.add((change.tenant, change.prompt_id))
            check(database, accepted - removed)
        # Nothing that happened is missing.
        rows = database.execute("SELECT tenant, prompt_id FROM jobs").fetchall()
        assert sorted(rows) == sorted(job.key for job in self.ledger.jobs())
        ended = set(database.execute("SELECT tenant, prompt_id FROM history"))
        assert ended == {job.key for job in self.all if self.ledger.history.find(*job.key)}
        database.close()


def check(database: sqlite3.Connection, wanted: set[Key]) -> None:
    """Each accepted job that was not taken back is open or has ended, once; and those that are open can end."""
    rows = [JobRecord(*row) for row in database.execute("SELECT * FROM jobs ORDER BY number, create_time")]
    open_now = [(row.tenant, row.prompt_id) for row in rows]
    ended = database.execute("SELECT tenant, prompt_id FROM history").fetchall()
    assert sorted([*open_now, *ended]) == sorted(wanted)
    paper: Any = Paper()
    ledger = Ledger(paper, LocalBus(), History(paper, 1000, 10_000_000), "gateway")
    for row in rows:
        ledger.restore(job_of(row, BACKENDS))
    jobs = ledger.jobs()
    ids = [each.upstream_id for job in jobs for each in (job.assignment, *job.given_up) if each is not None]
    assert len(set(ids)) == len(ids)
    for job in jobs:
        assert job.assignment is None or ledger.find_upstream(job.assignment.backend, job.upstream_id) is job
        assert all(ledger.orphans.has(each.backend, each.upstream_id) for each in job.given_up)
    for place, job in enumerate(jobs):
        end(ledger, job, is_lost=bool(place % 2))
    assert len(ledger) == len(ledger.waiting) == 0
    assert all(ledger.history.find(*key) is not None for key in open_now)


def end(ledger: Ledger, job: Job, *, is_lost: bool) -> None:
    """What recovery finds out of a job: its backend has lost it, or has brought it to its end."""
    if job.state is not State.WAITING and is_lost:
        ledger.lose(job)
    if job.state is State.WAITING:
        ledger.send(job, "b2")
        ledger.taken(job, job.upstream_id, b"{}")
        ledger.start(job, 1)
    ledger.collect(job)
    assert _LOOP.run_until_complete(ledger.finish(job, "success", b"{}", b"{}"))


# Each commit of each life is replayed: some thousands of restarts.
JournalMachine.TestCase.settings = settings(max_examples=RUNS or 200, stateful_step_count=30, deadline=None)
TestJournal = JournalMachine.TestCase
