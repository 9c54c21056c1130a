"""Waiting jobs are put in order, and sent, in several turns of the event loop if they are many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.fleet.backend import Backend
from gateway.jobs.scheduling import waiting_jobs
from gateway.jobs.scheduling.waiting_jobs import MAX_LOOK, READY_COST, WaitingJobs
from gateway.jobs.state.job import Job
from tests.jobs.scheduling.test_late_binding import Room

MAX_READY = MAX_LOOK // READY_COST + 1


def sender(room: Room, turns: list[None], *, is_late: bool = True) -> WaitingJobs:
    """Return what sends a room's jobs. All of them may run, and `turns` counts how often it asks for a later turn."""
    admission: Any = SimpleNamespace(
        version=1, look_cost=lambda job: 0, end_of=lambda job: None, refresh_able=lambda job: job.able
    )
    poisonous: Any = SimpleNamespace(look_cost=lambda job: 0, end_of=lambda job: None, is_held=lambda job: False)
    quarantine: Any = SimpleNamespace(admits=lambda job: True)
    candidates: Any = SimpleNamespace(
        has_room=lambda: not is_late,
        tenants_to_go=lambda: set(room.ledger.waiting.tenants),
        may_run_more=lambda tenant: True,
    )

    def choose(job: Job) -> Backend:
        return room.fleet.backends["b1"]

    return WaitingJobs(
        *(room.ledger, room.fleet, admission, poisonous, quarantine, candidates, room.late if is_late else None),
        *(lambda job, reason, type_: None, choose, lambda job, backend: room.ledger.send(job, backend.name)),
        lambda: turns.append(None),
    )


async def test_thousands_of_jobs_get_their_places_in_several_turns() -> None:
    room, turns = Room(0), list[None]()
    for _ in range(MAX_READY + 1):
        room.come("anna", "x", 1, {}, None)
    waiting = sender(room, turns)
    waiting.send()
    assert (len(room.late.to_judge(1)), len(turns)) == (1, 1)
    waiting.send()
    assert (room.late.to_judge(1), len(turns)) == ([], 1)
    room.late.close()


@pytest.mark.parametrize("is_late", [False, True])
async def test_many_jobs_are_sent_in_several_turns(*, is_late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_jobs, "MAX_SENDS", 2)
    room, turns = Room(0), list[None]()
    for _ in range(3):
        room.come("anna", "x", 1, {}, None)
    waiting = sender(room, turns, is_late=is_late)
    waiting.send()
    assert (len(room.ledger.waiting), len(turns)) == (1, 1)
    waiting.send()
    assert (len(room.ledger.waiting), len(turns)) == (0, 1)
    room.late.close()
