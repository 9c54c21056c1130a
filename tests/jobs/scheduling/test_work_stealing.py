"""Work stealing over a real ledger: what befalls a job before the task that takes it back has begun."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.comfy.client import Refused
from gateway.jobs.scheduling.work_stealing import WorkStealing
from gateway.jobs.state.job import Job
from gateway.telemetry.metrics import Metrics
from tests.jobs.scheduling.test_late_binding import Room


class Theft:
    """A room in which `b1` runs a job and has two more, `b2` is idle, and `b3` is drained."""

    def __init__(self) -> None:
        self.room = room = Room(0)
        room.fleet.backends["b3"].drained = True
        self.asked: list[str] = []
        client: Any = SimpleNamespace(delete_pending=self._refuse)
        room.fleet.backends["b1"].client = client
        running, *self.pending = [self.sent() for _ in range(3)]
        room.ledger.start(running, 1)
        self.resent: list[Job] = []
        admission: Any = SimpleNamespace(refresh_able=lambda job: job.able)
        self.stealing = WorkStealing(
            *(room.ledger, room.fleet, admission, Metrics(), room.board, room.learning),
            lambda job, avoid: self.resent.append(job),
            knows_times=False,
        )

    async def _refuse(self, upstream_ids: list[str]) -> None:
        self.asked += upstream_ids
        raise Refused("refused")

    def sent(self) -> Job:
        """A job that is pending on b1."""
        job = self.room.come("anna", "x", 1, {}, None)
        self.room.ledger.send(job, "b1")
        self.room.ledger.taken(job, job.upstream_id, b"{}")
        return job


@pytest.mark.parametrize("befalls", ["cancel", "lose"])
async def test_a_job_that_goes_before_it_is_taken_back_holds_up_nothing(befalls: str) -> None:
    """The idle backend steals the next job, and the job itself can be taken back again."""
    theft = Theft()
    first, second = theft.pending
    theft.stealing.look()
    assert (first.recalled, second.recalled) == (True, False)
    getattr(theft.room.ledger, befalls)(first)
    await asyncio.sleep(0)
    assert not first.recalled
    assert theft.asked == theft.resent == []
    theft.stealing.look()
    assert second.recalled
    upstream_id = second.upstream_id
    await asyncio.sleep(0)
    assert theft.asked == [upstream_id]
    theft.room.late.close()


async def test_a_job_that_is_sent_again_at_once_is_not_taken_back() -> None:
    theft = Theft()
    job = theft.pending[0]
    theft.stealing.take(job, theft.room.fleet.backends["b1"])
    theft.room.ledger.lose(job)
    theft.room.ledger.send(job, "b1")
    theft.room.ledger.taken(job, job.upstream_id, b"{}")
    await asyncio.sleep(0)
    assert (job.recalled, theft.asked, theft.resent) == (False, [], [])
    theft.room.late.close()
