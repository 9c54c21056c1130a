"""The faults that tests of the gateway rest on do what they say."""

from __future__ import annotations

import asyncio
import uuid

from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.workflows import slow


async def test_a_held_prompt_is_queued_when_the_fault_is_off(lab: Lab) -> None:
    simulator = await lab.simulator("--fail", "hold-prompt")
    comfy = Comfy(lab.http, simulator.url)
    prompt_id = str(uuid.uuid4())
    sending = asyncio.create_task(comfy.prompt(slow(), prompt_id=prompt_id))

    async def arrived() -> bool:
        return "POST /prompt" in await simulator.requests(lab.http)

    await until(arrived)
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    await simulator.no_faults(lab.http)
    assert await sending == prompt_id
    await comfy.entry(prompt_id)


async def test_a_held_answer_holds_nothing_else(lab: Lab) -> None:
    simulator = await lab.simulator("--fail", "hold-answer")
    comfy = Comfy(lab.http, simulator.url)
    prompt_id = str(uuid.uuid4())
    sending = asyncio.create_task(comfy.prompt(slow(), prompt_id=prompt_id))
    await comfy.entry(prompt_id)
    assert not sending.done()
    await simulator.no_faults(lab.http)
    assert await sending == prompt_id


async def test_an_old_comfyui(lab: Lab) -> None:
    """It has not the newer routes, and interrupts whatever runs."""
    faults = ("no-jobs", "no-features", "no-version", "interrupt-any")
    simulator = await lab.simulator(*(word for fault in faults for word in ("--fail", fault)))
    comfy = Comfy(lab.http, simulator.url)
    for path in ("/features", "/api/features", "/api/jobs", f"/api/jobs/{uuid.uuid4()}"):
        async with lab.http.get(simulator.url + path) as answer:
            assert answer.status == 404, path
    assert (await comfy.post("/api/jobs/cancel", {"job_ids": []}))[0] == 405
    assert "comfyui_version" not in (await comfy.get("/system_stats"))["system"]
    listener = await comfy.listen("c", flags={"supports_preview_metadata": True})
    prompt_id = await comfy.prompt(slow(steps=1000), "c")
    await listener.next("binary 1")
    assert not [event for event in listener.heard if event["type"] == "feature_flags"]
    assert (await comfy.post("/interrupt", {"prompt_id": str(uuid.uuid4())}))[0] == 200
    assert (await comfy.entry(prompt_id))["status"]["messages"][-1][0] == "execution_interrupted"
