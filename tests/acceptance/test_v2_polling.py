"""Short jobs that are polled without a pause: each answer is a state that the job may be in, and none is missing.

POLLED_JOBS=500 for more of them.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import pytest_asyncio

from tests.support.lab import Lab
from tests.support.v2 import TERMINAL, V2World, start_v2
from tests.support.workflows import slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
JOBS, AT_ONCE, BACKENDS = int(os.environ.get("POLLED_JOBS", "60")), 6, 3
# Statuses in the only order in which a job may have them; it may skip some.
ORDER = ("queued", "running", "canceling", *TERMINAL)
CANCEL_EACH = 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> V2World:
    """A gateway over several backends."""
    return await start_v2(shared_lab, BACKENDS)


def _check(job: Any) -> None:
    """Check that an answer agrees with itself."""
    status = job["status"]
    times = [job[name] for name in ("created_at", "started_at", "completed_at")]
    told = [each for each in times if each is not None]
    assert told == sorted(told), job
    assert (times[2] is not None) == (status in TERMINAL), job
    assert job["error"] is None, job
    if status == "queued":
        assert times[1] is None, job
        assert job["outputs"] == [], job
        assert job["queue_position"] is None or job["queue_position"] >= 1, job
    if status == "running":
        assert times[1] is not None, job
    if status == "succeeded":
        assert len(job["outputs"]) == 1, job
        assert job["metrics"]["execution_ms"] >= 0, job


async def _poll(world: V2World, number: int) -> tuple[list[str], int]:
    """Submit a job and poll it without a pause. Return its statuses, without repetitions, and the number of answers."""
    is_cancelled = number % CANCEL_EACH == 3
    # A job that is cancelled would take long, so that it is still there: it runs, or it waits behind another.
    job = await world.anna.submit(slow(number, steps=100, step_seconds=0.1) if is_cancelled else slow(number, steps=1))
    if is_cancelled:
        cancelled = await world.anna("POST", job["urls"]["cancel"])
        assert cancelled.status == 200, cancelled.raw
        job = cancelled.body
    seen, count, extra = [job["status"]], 0, 3
    while extra:
        # Its end is asked for a few times more, because that has to stay.
        extra -= seen[-1] in TERMINAL
        answer = await world.anna("GET", f"/jobs/{job['id']}")
        assert answer.status == 200, (seen, answer.raw)
        _check(answer.body)
        count += 1
        if answer.body["status"] != seen[-1]:
            seen.append(answer.body["status"])
    listed = (await world.anna("GET", "/jobs?limit=100")).body["jobs"]
    assert {each["id"]: each["status"] for each in listed}[job["id"]] == seen[-1]
    assert seen[-1] == ("canceled" if is_cancelled else "succeeded"), seen
    return seen, count


async def test_short_jobs_polled_without_a_pause(world: V2World) -> None:
    numbers = iter(range(JOBS))

    async def work() -> list[tuple[list[str], int]]:
        return [await _poll(world, number) for number in numbers]

    results = [each for found in await asyncio.gather(*(work() for _ in range(AT_ONCE))) for each in found]
    assert len(results) == JOBS
    for seen, _ in results:
        places = [ORDER.index(status) for status in seen]
        assert places == sorted(set(places)), seen
        assert len(set(seen) & set(TERMINAL)) == 1, seen
    print(f"{JOBS} jobs, {sum(count for _, count in results)} answers", {tuple(seen) for seen, _ in results})
