"""Event streams of the Comfy API v2: a snapshot first, each output before the terminal status, and that last."""

from __future__ import annotations

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.support.lab import Lab
from tests.support.security_world import KEYS, broadcast, start
from tests.support.v2 import V2Caller, V2World, start_v2
from tests.support.workflows import failing, slow

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_STREAMS, BUFFER = 4, 64 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(shared_lab: Lab) -> V2World:
    """One gateway for all tests."""
    return await start_v2(shared_lab, v2__max_streams=MAX_STREAMS, v2__tenant_buffer=BUFFER)


@pytest_asyncio.fixture(loop_scope="module")
async def lab_of_one(shared_lab: Lab) -> V2World:
    """A gateway that a test may stop."""
    simulator = await shared_lab.simulator()
    gateway = await start(shared_lab, simulator, data="stopped")
    anna, ben = (V2Caller(shared_lab, gateway, KEYS[name]) for name in ("anna", "ben"))
    return V2World(shared_lab, [simulator], gateway, anna, ben)


def assert_order(events: list[tuple[str, Any]], *, outputs: int) -> None:
    """Outputs once each, before the terminal status; that last; nothing unknown."""
    assert {name for name, _ in events} <= {"status", "progress", "preview", "output"}
    assert events[-1][0] == "status"
    statuses = [data["status"] for name, data in events if name == "status"]
    assert not set(statuses[:-1]) & {"succeeded", "failed", "canceled", "expired"}
    ids = [data["id"] for name, data in events if name == "output"]
    assert len(ids) == len(set(ids)) == outputs
    values = [data["value"] for name, data in events if name == "progress"]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


async def events_of(caller: V2Caller, job: Any) -> list[tuple[str, Any]]:
    """All events of a job from now on."""
    async with caller.stream(job) as stream:
        return await stream.rest()


async def test_from_the_submission_to_the_end(world: V2World) -> None:
    events: list[tuple[str, Any]] = []
    async with AsyncExitStack() as stack:
        async with world.lab.held(*world.simulators, after=6):
            job = await world.anna.submit(slow(steps=12, step_seconds=0.05))
            stream = await stack.enter_async_context(world.anna.stream(job))
            while not events or events[-1][0] != "preview":
                event = await stream.next()
                assert event is not None
                events.append(event)
        events += await stream.rest()
    assert_order(events, outputs=1)
    assert events[0][0] == "status"
    names = [name for name, _ in events]
    assert names.count("progress") <= 6
    previews = [data for name, data in events if name == "preview"]
    assert previews
    assert previews[0]["node_id"] == "1"
    assert base64.b64decode(previews[0]["data_base64"]).startswith((b"\xff\xd8\xff", b"\x89PNG"))
    assert events[-1][1]["status"] == "succeeded"
    done = await world.anna.job(job["id"])
    (told,) = [data for name, data in events if name == "output"]
    (output,) = done["outputs"]
    assert {**told, "url_expires_at": ""} == {**output, "url_expires_at": ""}


async def test_two_streams_of_one_job_hear_the_same(world: V2World) -> None:
    job = await world.anna.submit(slow(2, steps=8, step_seconds=0.1))
    one, other = await asyncio.gather(events_of(world.anna, job), events_of(world.anna, job))
    for events in (one, other):
        assert_order(events, outputs=1)
        assert events[-1][1]["status"] == "succeeded"


@pytest.mark.parametrize(("workflow", "status", "outputs"), [(slow(3), "succeeded", 1), (failing(), "failed", 0)])
async def test_a_late_stream_has_the_outputs_before_the_end(
    world: V2World, workflow: Any, status: str, outputs: int
) -> None:
    job = await world.ben.run(workflow)
    events = await events_of(world.ben, job)
    assert_order(events, outputs=outputs)
    assert events[-1][1] == {"status": status}
    assert (await world.anna("GET", f"/jobs/{job['id']}/events")).status == 404


async def test_a_stream_of_a_queued_job(world: V2World) -> None:
    """Another tenant's job runs before it, and counts for no position."""
    first = await world.ben.submit(slow(4, steps=200, step_seconds=0.1))
    await world.ben.reaches(first["id"], "running")
    second = await world.anna.submit(slow(5, steps=1))
    third = await world.anna.submit(slow(6, steps=1))
    async with world.anna.stream(third) as stream:
        assert await stream.next() == ("status", {"status": "queued", "queue_position": 2})
        await world.anna("POST", second["urls"]["cancel"])
        assert await stream.next() == ("status", {"status": "queued", "queue_position": 1})
        await world.ben("POST", first["urls"]["cancel"])
        events = await stream.rest()
    assert_order(events, outputs=1)
    async with world.anna.stream(second) as stream:
        assert await stream.rest() == [("status", {"status": "canceled"})]


async def test_a_cancelled_job_ends_its_streams_at_once(world: V2World) -> None:
    running = await world.anna.submit(slow(7, steps=200, step_seconds=0.1))
    await world.anna.reaches(running["id"], "running")
    queued = await world.anna.submit(slow(8))
    async with world.anna.stream(queued) as one, world.anna.stream(running) as other:
        assert (await one.next() or ("", {}))[1]["status"] == "queued"
        assert (await other.next() or ("", {}))[1]["status"] == "running"
        await world.anna("POST", queued["urls"]["cancel"])
        assert (await one.rest())[-1] == ("status", {"status": "canceled"})
        await world.anna("POST", running["urls"]["cancel"])
        events = await other.rest()
    assert events[-1] == ("status", {"status": "canceled"})
    assert_order(events, outputs=0)


async def test_past_the_limit_of_streams(world: V2World) -> None:
    job = await world.anna.submit(slow(9, steps=200, step_seconds=0.1))
    streams = [world.anna.stream(job) for _ in range(MAX_STREAMS)]
    for stream in streams:
        await stream.__aenter__()
        await stream.next()
    answer = await world.anna("GET", job["urls"]["events"])
    assert (answer.status, answer.body["error"]["code"]) == (429, "too_many_streams")
    assert answer.headers["Retry-After"] == "5"
    # Another tenant has streams of its own.
    theirs = await world.ben.submit(slow(10, steps=1))
    async with world.ben.stream(theirs) as stream:
        assert (await stream.next() or ("", {}))[0] == "status"
    await world.anna("POST", job["urls"]["cancel"])
    for stream in streams:
        assert (await stream.rest())[-1] == ("status", {"status": "canceled"})
        await stream.__aexit__()
    assert len(await events_of(world.anna, job)) == 1


async def test_no_previews_past_the_bytes_that_may_wait(world: V2World) -> None:
    """Readers that are slow held up to 1.4 MB each. The rest of the story is told all the same."""
    # It stops after its first step, until the other previews have come.
    await world.simulators[0].fault(world.lab.http, "silent")
    job = await world.anna.submit(slow(12, steps=2, step_seconds=0.05))
    async with world.anna.stream(job) as stream:
        event = await stream.next()
        await world.simulators[0].fault(world.lab.http, "silent:1")
        while event is not None and event[0] != "preview":
            event = await stream.next()
        assert event is not None
        await broadcast(world.lab, world.simulators[0], b"\0\0\0\1\0\0\0\1" + bytes(BUFFER))
        await world.simulators[0].no_faults(world.lab.http)
        events = await stream.rest()
    assert_order([event, *events], outputs=1)
    assert all(len(data["data_base64"]) < BUFFER for name, data in events if name == "preview")
    assert events[-1] == ("status", {"status": "succeeded"})


async def test_a_stop_of_the_gateway_ends_streams_without_an_end(lab_of_one: V2World) -> None:
    world = lab_of_one
    job = await world.anna.submit(slow(11, steps=300, step_seconds=0.1))
    async with world.anna.stream(job) as stream:
        await stream.next()
        stopping = asyncio.create_task(world.gateway.stop())
        events = await stream.rest()
        assert "canceled" not in {data.get("status") for _, data in events}
        assert await stopping == 0
