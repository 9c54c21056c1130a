"""Weights and priorities of tenants, over a restart."""

from __future__ import annotations

from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab
from tests.support.tenancy import BOSS, caller, serve, write_config
from tests.support.workflows import slow

PRIORITY = "gateway_priority"


async def refused(comfy: Comfy, priority: Any) -> dict[str, Any]:
    """The error of a prompt whose priority is refused."""
    status, answer = await comfy.post("/prompt", {"prompt": slow(), "extra_data": {PRIORITY: priority}})
    assert status == 400
    found: dict[str, Any] = answer["error"]
    return found


def began(entry: dict[str, Any]) -> int:
    """When a job began, in milliseconds."""
    return next(int(data["timestamp"]) for name, data in entry["status"]["messages"] if name == "execution_start")


async def test_weights_and_priorities(lab: Lab) -> None:
    named = {"anna": {"weight": 3, "max_priority": 2}, "eve": {"weight": 3}}
    config = write_config(lab, [await lab.simulator()], {"named": named}, {}, dispatch={"max_queue": 4})
    gateway = await serve(lab, config, 1)
    anna, ben, eve, boss = (caller(lab, gateway, name) for name in ("anna", "ben", "eve", BOSS))
    blocking = await boss.prompt(slow(0, steps=1000, step_seconds=0.05))
    await boss.running(blocking)
    error = await refused(ben, 1)
    assert (error["type"], error["extra_info"]) == ("priority_not_allowed", {"priority": 1, "max_priority": 0})
    error = await refused(anna, 3)
    assert error["details"] == "extra_data.gateway_priority is 3; this caller may ask for from 0 to 2"
    assert (await refused(anna, "high"))["type"] == "invalid_priority"
    # Eve has anna's weight, and jobs that take much longer.
    sent: dict[str, str] = {}
    for n in range(12):
        sent[await ben.prompt(slow(n, steps=1, step_seconds=0.05))] = "ben"
        sent[await anna.prompt(slow(n, steps=1, step_seconds=0.05))] = "anna"
        sent[await eve.prompt(slow(n, steps=10, step_seconds=0.05))] = "eve"
    urgent = await anna.prompt(slow(99, steps=1), extra_data={PRIORITY: 2})
    await gateway.kill()
    await gateway.start()
    await lab.backends_up(gateway, 1)
    for comfy in (anna, ben, boss):
        comfy.url = gateway.url
    await boss.running(blocking)
    await boss.post("/interrupt", {"prompt_id": blocking})
    for prompt_id, tenant in sent.items():
        if tenant == "anna":
            await anna.entry(prompt_id)
    ended = await boss.get("/history")
    order = sorted(ended.keys() - {blocking}, key=lambda prompt_id: began(ended[prompt_id]))
    # It came when jobs were in the backend's queue, and goes before them, or next to one that began meanwhile.
    assert order.index(urgent) <= 3
    order.remove(urgent)
    ran = "".join(sent[prompt_id][0] for prompt_id in order)
    # Of 12 runs of anna's, 4 would be ben's and 1 or 2 eve's, if all times were known and as sent.
    assert 2 <= ran.count("b") <= 8, ran
    assert 1 <= ran.count("e") <= 8, ran
