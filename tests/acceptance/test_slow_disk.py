"""A journal that takes its time: much may happen between the acceptance of a prompt and the moment it is written."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator

from tests.support.backend_state import described, posts
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.workflows import slow


@contextlib.contextmanager
def nothing_is_written(lab: Lab) -> Iterator[None]:
    """Meanwhile every commit of the gateway waits."""
    connection = sqlite3.connect(lab.directory / "data" / "gateway.sqlite3", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def queued(comfy: Comfy) -> None:
    """Wait until a prompt is in /queue, where it is before it is written."""

    async def look() -> bool:
        return any((await comfy.get("/queue")).values())

    await until(look, what="it is accepted")


async def ended(comfy: Comfy) -> str:
    """Wait until the one job is over; how."""

    async def look() -> list[str]:
        return [entry["status"]["status_str"] for entry in (await comfy.get("/history")).values()]

    return (await until(look, what="it is over"))[0]


async def test_a_job_whose_backend_goes_before_it_is_written_is_sent_once(lab: Lab) -> None:
    """Chaos, seed 28: the one who accepted it and the one who sends what was lost both sent it."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)

    async def is_gone() -> bool:
        return bool((await described(comfy, "b1"))["state"] == "gone")

    with nothing_is_written(lab):
        sent = asyncio.create_task(comfy.prompt(slow(steps=20)))
        await queued(comfy)
        await simulators[0].kill()
        # As long as it is not answered it would be sent again.
        await simulators[1].fault(lab.http, "hold-answer")
        await until(is_gone, what="b1 is gone")
    assert await ended(comfy) == "success"
    await simulators[1].no_faults(lab.http)
    await sent
    assert await posts(lab, simulators[1]) == [1]


async def test_a_job_that_need_not_wait_before_it_is_written_is_sent_once(lab: Lab) -> None:
    """Chaos, seed 33: the one who accepted it and the one who sends what waits both sent it."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b1/drain")
    with nothing_is_written(lab):
        sent = asyncio.create_task(comfy.prompt(slow(steps=20)))
        await queued(comfy)
        # As long as it is not answered it would be sent again.
        await simulator.fault(lab.http, "hold-answer")
        await comfy.post("/gateway/backends/b1/resume")
    assert await ended(comfy) == "success"
    await simulator.no_faults(lab.http)
    await sent
    assert await posts(lab, simulator) == [1]


async def test_a_run_that_is_cancelled_ends_once_that_is_written(lab: Lab) -> None:
    """Before that it was told as a success without outputs."""
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    # The first one runs, so that the second one is cancelled without a history entry.
    await comfy.running(await comfy.prompt(slow(1, steps=1000, step_seconds=0.05)))
    prompt_id = await comfy.prompt(slow(2))

    async def result(seconds: int) -> tuple[int, str]:
        url, headers = f"{gateway.url}/gateway/run/{prompt_id}", {"Prefer": f"wait={seconds}"}
        async with lab.http.get(url, headers=headers) as answer:
            said = await answer.json()
            return answer.status, said["error"]["type"] if said["error"] else said["status"]

    async def is_stopping() -> bool:
        return await result(0) == (202, "canceling")

    with nothing_is_written(lab):
        cancelling = asyncio.create_task(comfy.post(f"/api/v2/jobs/{prompt_id}/cancel"))
        await until(is_stopping, what="it is cancelled, and not written")
        waiting = asyncio.create_task(result(30))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
    assert await waiting == (409, "job_cancelled")
    assert (await cancelling)[0] == 200
