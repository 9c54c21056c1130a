"""POST /gateway/run on gateways of its own: a short wait, a full one, a restart that keeps workflows, a stop."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.lab import Lab, until
from tests.support.runs import Runner
from tests.support.security_world import KEYS, start
from tests.support.v2 import V2Caller
from tests.support.workflows import slow

IMAGE = {"Accept": "image/*"}


async def test_the_wait_its_bound_a_restart_and_a_stop(lab: Lab) -> None:
    simulator = await lab.simulator()
    settings: dict[str, Any] = {"run__wait_max": 0.2, "run__max_waiting": 1}
    gateway = await start(lab, simulator, **settings)
    anna, ben = (Runner(lab, gateway, KEYS[name]) for name in ("anna", "ben"))
    held = slow(9, steps=1000, step_seconds=0.05)
    late = await anna.run({"prompt": held}, headers={"Prefer": "wait=60"})
    assert (late.status, late.headers["Preference-Applied"]) == (202, "wait=0")
    assert (await anna("PUT", "/gateway/workflows/kept", json=slow(13, steps=1))).status == 201
    assert await gateway.stop() == 0

    gateway = await start(lab, simulator, run__max_waiting=1)
    anna, ben = (Runner(lab, gateway, KEYS[name]) for name in ("anna", "ben"))
    assert (await anna("GET", "/gateway/workflows/kept")).body["graph"] == slow(13, steps=1)
    assert (await ben("GET", "/gateway/workflows")).body == {"workflows": []}
    location = f"/gateway/run/{late.body['prompt_id']}"
    asked = [asyncio.create_task(anna("GET", location)) for _ in range(2)]
    # The one that comes second is refused at once.
    (refused,), (waiting,) = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    answer = await refused
    assert (answer.status, answer.body["error"]["type"]) == (429, "too_many_waiting")
    before = await anna.open_jobs()
    assert (await anna.run({"prompt": slow(10)})).status == 429
    assert await anna.open_jobs() == before
    # The Comfy API v2 takes the job all the same, and does not wait. Nor does who asks not to.
    v2 = await V2Caller(lab, gateway, KEYS["anna"])(
        "POST", "/jobs", json={"workflow": held}, headers={"Prefer": "wait=60"}
    )
    assert (v2.status, "Preference-Applied" in v2.headers) == (201, False)
    assert (await anna.run({"prompt": held}, headers={"Prefer": "wait=0"})).status == 202
    # Another tenant may wait, and a stop ends the wait with an answer.
    others = asyncio.create_task(ben.run({"prompt": slow(11)}, headers=IMAGE))
    await until(ben.open_jobs, what="ben's job")
    assert await gateway.stop() == 0
    for each in (await waiting, await others):
        assert (each.status, "Location" in each.headers) == (202, True)
