"""What a caller chooses orders that caller's own work: numbers of any size, and ``front``."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import pytest

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.tenancy import caller, serve, write_config
from tests.support.workflows import slow

NUMBERS = [1e300, 9.3e18, 1e15, -1e308, 2**63, 10**30, 0.5]


def of_two(lab: Lab, simulator: Simulator) -> Any:
    """A configuration with anna and ben."""
    return write_config(lab, [simulator], {}, {})


async def number_of(comfy: Comfy, **more: Any) -> float:
    """The number that a prompt is answered with."""
    status, answer = await comfy.post("/prompt", {"prompt": slow(steps=1, step_seconds=0.0), **more})
    assert status == 200, answer
    await comfy.entry(answer["prompt_id"])
    return float(answer["number"])


async def test_a_number_of_any_size_is_its_jobs_alone(lab: Lab) -> None:
    """It is shown as ComfyUI shows it, and is nobody's next number, after a restart neither."""
    simulator = await lab.simulator()
    config = of_two(lab, simulator)
    gateway = await serve(lab, config, 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    held = slow(1, steps=1000, step_seconds=1.0)
    running = await ben.prompt(held)
    await ben.running(running)
    for number in NUMBERS:
        status, answer = await ben.post("/prompt", {"prompt": slow(), "number": number})
        assert (status, answer["number"]) == (200, float(number))
    first = await anna.prompt(slow())
    shown = [item[0] for item in (await ben.get("/queue"))["queue_pending"]]
    assert shown == sorted(map(float, NUMBERS))
    assert [item[0] for item in (await anna.get("/queue"))["queue_pending"]] == [1]
    await gateway.kill()
    gateway = await serve(lab, config, 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    assert [item[0] for item in (await ben.get("/queue"))["queue_pending"]] == shown
    status, answer = await anna.post("/prompt", {"prompt": slow()})
    assert (status, answer["number"]) == (200, 2)
    assert (await ben.post("/interrupt", {}))[0] == 200
    for prompt_id in (first, answer["prompt_id"], *[item[1] for item in (await ben.get("/queue"))["queue_pending"]]):
        await (anna if prompt_id in (first, answer["prompt_id"]) else ben).entry(prompt_id)
    # All of them are in the history now.
    await gateway.stop()
    gateway = await serve(lab, config, 1)
    assert await number_of(caller(lab, gateway, "anna")) == 3


async def test_a_journal_that_holds_such_numbers_as_its_own_is_read(lab: Lab) -> None:
    """An earlier version took the numbers of clients for its own and went on from there, as far as integers go."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    assert [await number_of(comfy), await number_of(comfy)] == [0, 1]
    running = await comfy.prompt(slow(1, steps=1000, step_seconds=1.0))
    await comfy.running(running)
    waiting = await comfy.prompt(slow())
    await gateway.kill()
    spoil(gateway, waiting)
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    status, answer = await comfy.post("/prompt", {"prompt": slow()})
    assert (status, answer["number"]) == (200, 3)
    assert (await comfy.post("/interrupt", {}))[0] == 200
    await comfy.entry(waiting)
    await comfy.entry(answer["prompt_id"])


def spoil(gateway: GatewayProcess, prompt_id: str) -> None:
    """Write numbers into the journal, as those of an ended job and of an open one."""
    with contextlib.closing(sqlite3.connect(gateway.data_dir / "gateway.sqlite3")) as connection:
        connection.execute("UPDATE history SET number=9.3e18 WHERE position=1")
        connection.execute("UPDATE jobs SET number=1e300 WHERE prompt_id=?", (prompt_id,))
        connection.commit()


@pytest.mark.parametrize("more", [{"front": True}, {"number": -1e308}])
async def test_who_is_always_at_the_front_is_so_in_its_own_share(lab: Lab, more: dict[str, Any]) -> None:
    """ComfyUI's own queue says what it runs next: anna's, whatever ben sent before and sends after."""
    simulator = await lab.simulator()
    gateway = await serve(lab, of_two(lab, simulator), 1)
    anna, ben = caller(lab, gateway, "anna"), caller(lab, gateway, "ben")
    running = await ben.prompt(slow(1, steps=1000, step_seconds=1.0))
    await ben.running(running)
    for _ in range(25):
        await ben.prompt(slow(2), **more)
    annas = await anna.prompt(slow(3))
    for _ in range(5):
        await ben.prompt(slow(2), **more)
    pending = (await Comfy(lab.http, simulator.url).get("/queue"))["queue_pending"]
    assert len(pending) == 15
    first = min(pending, key=lambda item: item[0])
    assert first[1] == gateway.upstream_ids()[annas]
    assert (await ben.post("/queue", {"clear": True}))[0] == 200
    assert (await ben.post("/interrupt", {}))[0] == 200
    await anna.entry(annas)
