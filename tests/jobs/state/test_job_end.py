"""Work at the end of each job: its changes go to the journal with the job's end, however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.job import Job
from gateway.jobs.state.job_end import End
from gateway.jobs.state.ledger import Ledger
from gateway.store.protocol import (
    Change,
    HistoryRecord,
    HistoryRemoval,
    JobRecord,
    JobRemoval,
    UploadEnd,
    UploadRemoval,
)
from tests.support.ledgers import _LOOP, Paper, admit, loading, new_ledger
from tests.support.workflows import slow

REF = FileRef("input", "", "a.png")
END = UploadEnd("t", "input", "", "a.png")
UNDONE = UploadRemoval("t", "input", "", "a.png")


class Noted:
    """A part that notes each ended job, and whether an open job names its upload then."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.named: list[bool] = []
        self.ends: list[End] = []

    def changes(self, job: Job, end: End) -> Sequence[Change]:
        """One change."""
        self.ends.append(end)
        return [END]

    def undone(self, job: Job) -> Sequence[Change]:
        """One change."""
        return [UNDONE]

    def ended(self, job: Job) -> None:
        """Note it."""
        self.named.append(self.ledger.named.has(job.tenant, REF))


@pytest.mark.parametrize("outcome", ["success", "error", "cancelled", "withdrawn", "refused"])
def test_changes_are_journalled_with_the_end(outcome: str) -> None:
    ledger = new_ledger()
    noted = Noted(ledger)
    ledger.steps.at_end = (noted,)
    job = admit(ledger, prompt=slow() | loading("a.png"))
    assert ledger.named.has("t", REF)
    paper = ledger._store
    assert isinstance(paper, Paper)
    if outcome == "refused":
        # Its client was never told that it is a job.
        ledger.withdraw(job)
        assert (noted.named, END in paper.changes) == ([], False)
        return
    if outcome == "withdrawn":
        ledger.cancel(job)
    else:
        ledger.send(job, "b1")
        ledger.start(job, 1)
        ledger.collect(job)
        end = ledger.finish(job, outcome, b"{}", json.dumps({"id": job.prompt_id}).encode())
        assert _LOOP.run_until_complete(end) is True
    before, change = paper.changes[-2:]
    assert change == END
    assert isinstance(before, (HistoryRecord, JobRemoval))
    assert noted.named == [False]
    assert [end.outcome for end in noted.ends] == ["cancelled" if outcome == "withdrawn" else outcome]


def test_an_end_that_came_to_nothing_is_undone() -> None:
    """The job is lost while its end is written: it runs again, and nobody is to be told of that end."""
    ledger = new_ledger()
    noted = Noted(ledger)
    ledger.steps.at_end = (noted,)
    job = admit(ledger)
    ledger.send(job, "b1")
    ledger.start(job, 1)
    ledger.collect(job)
    paper = ledger._store
    assert isinstance(paper, Paper)
    written = paper.write

    def write(changes: Sequence[Change]) -> Any:
        if not isinstance(changes[0], HistoryRecord):
            return written(changes)
        written(changes)
        late: asyncio.Future[None] = _LOOP.create_future()
        _LOOP.call_soon(ledger.lose, job)
        _LOOP.call_later(0.01, late.set_result, None)
        return late

    paper.write = write  # type: ignore[method-assign]
    assert _LOOP.run_until_complete(ledger.finish(job, "success", b"{}", b"{}")) is False
    assert [type(change) for change in paper.changes[-3:]] == [HistoryRemoval, JobRecord, UploadRemoval]
    assert paper.changes[-1] == UNDONE
    assert noted.named == []
