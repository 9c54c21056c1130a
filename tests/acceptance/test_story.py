"""A client written for one ComfyUI sees one: one running prompt, and progress that only goes forward."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import Lab, Simulator, until
from tests.support.workflows import slow

LONG = {"steps": 1000, "step_seconds": 0.1}


def ids_of(items: list[list[Any]]) -> list[str]:
    """The prompt ids of a list of /queue."""
    return [item[1] for item in items]


async def running_there(lab: Lab, simulators: list[Simulator]) -> int:
    """How many of the backends run a prompt."""
    queues = [await Comfy(lab.http, simulator.url).get("/queue") for simulator in simulators]
    return sum(len(queue["queue_running"]) for queue in queues)


async def all_run(lab: Lab, simulators: list[Simulator], count: int) -> None:
    """Wait until so many backends run a prompt at the same time."""

    async def look() -> bool:
        return await running_there(lab, simulators) == count

    await until(look, what=f"{count} run")


@asynccontextmanager
async def polled(comfy: Comfy) -> AsyncIterator[list[dict[str, Any]]]:
    """Read /queue again and again meanwhile."""
    seen: list[dict[str, Any]] = []

    async def poll() -> None:
        while True:
            seen.append(await comfy.get("/queue"))

    task = asyncio.create_task(poll())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert seen


async def test_one_runs_for_a_client_of_one_comfyui(lab: Lab) -> None:
    """Three GPUs work at once; /queue never shows more than one, and each bar moves in all of its steps."""
    simulators = await lab.simulators(3)
    comfy = Comfy(lab.http, (await lab.gateway(*simulators)).url)
    listener = await comfy.listen("c")
    async with polled(comfy) as seen:
        async with lab.held(*simulators):
            ids = [await comfy.prompt(slow(n, steps=8, step_seconds=0.04), "c") for n in range(5)]
            await all_run(lab, simulators, 3)
        for prompt_id in ids:
            await listener.end_of(prompt_id)
    assert max(len(queue["queue_running"]) for queue in seen) == 1
    for queue in seen:
        shown = ids_of(queue["queue_running"] + queue["queue_pending"])
        assert len(shown) == len(set(shown))
    for prompt_id in ids:
        steps = [
            event["data"]["value"]
            for event in listener.heard
            if event["type"] == "progress" and event["data"]["prompt_id"] == prompt_id
        ]
        assert steps == list(range(1, 9))


async def test_one_backend_never_shows_two(lab: Lab) -> None:
    """Also while one prompt is collected and the next runs, and also to a client that sees all that runs."""
    comfy = Comfy(lab.http, (await lab.gateway(await lab.simulator())).url)
    listener = await comfy.listen("c", "&events=interleave")
    async with polled(comfy) as seen:
        ids = [await comfy.prompt(slow(n, steps=1, step_seconds=0.01), "c") for n in range(15)]
        for prompt_id in ids:
            await listener.end_of(prompt_id)
    assert max(len(queue["queue_running"]) for queue in seen) == 1


async def one_by_one(comfy: Comfy, count: int, client_id: str | None = None) -> list[str]:
    """Send prompts, each once the last one runs, because backends may begin two that come together in any order."""
    ids: list[str] = []
    for n in range(count):
        ids.append(await comfy.prompt(slow(n, **LONG), client_id))
        await comfy.running(ids[n])
    return ids


async def test_who_sees_all_that_runs(lab: Lab) -> None:
    """All sockets of the caller take events as they happen; one that does not is shown one prompt."""
    simulators = await lab.simulators(2)
    comfy = Comfy(lab.http, (await lab.gateway(*simulators)).url)
    ids = [*await one_by_one(comfy, 2), await comfy.prompt(slow(2, **LONG))]

    async def shown() -> list[list[str]]:
        queue = await comfy.get("/queue")
        return [ids_of(queue["queue_running"]), ids_of(queue["queue_pending"])]

    one, both = [ids[:1], ids[1:]], [ids[:2], ids[2:]]
    assert await shown() == one
    ui = await comfy.listen("ui", flags={"supports_preview_metadata": True})
    await until(lambda: _equal(shown, both), what="all that runs")
    script = await comfy.listen("script")
    assert await shown() == one
    await script.socket.close()
    await until(lambda: _equal(shown, both), what="all that runs")
    await ui.socket.close()
    states = {job["id"]: job["status"] for job in (await comfy.get("/api/jobs"))["jobs"]}
    assert states == {ids[0]: "in_progress", ids[1]: "in_progress", ids[2]: "pending"}


async def _equal(look: Any, wanted: Any) -> bool:
    return bool(await look() == wanted)


async def test_interrupt_and_delete_follow_what_is_shown(lab: Lab) -> None:
    """POST /interrupt stops the prompt that is shown as running alone; a delete takes out one that runs unseen."""
    simulators = await lab.simulators(3)
    comfy = Comfy(lab.http, (await lab.gateway(*simulators)).url)
    ids = [*await one_by_one(comfy, 3), await comfy.prompt(slow(3, **LONG))]
    assert (await comfy.post("/interrupt", {}))[0] == 200
    assert (await comfy.entry(ids[0]))["status"]["messages"][-1][0] == "execution_interrupted"
    await comfy.running(ids[3])
    assert await running_there(lab, simulators) == 3
    assert ids_of((await comfy.get("/queue"))["queue_running"]) == [ids[1]]
    assert (await comfy.post("/queue", {"delete": [ids[1], ids[2]]}))[0] == 200
    queue = await comfy.get("/queue")
    assert [ids_of(queue["queue_running"]), ids_of(queue["queue_pending"])] == [[ids[1]], [ids[3]]]
    await all_run(lab, simulators, 2)
    assert (await comfy.post("/queue", {"clear": True}))[0] == 200
    queue = await comfy.get("/queue")
    assert [ids_of(queue["queue_running"]), queue["queue_pending"]] == [[ids[1]], []]
    await all_run(lab, simulators, 1)
    assert list(await comfy.get("/history")) == [ids[0]]


async def test_a_socket_hears_nothing_of_a_prompt_that_was_deleted_before_its_turn(lab: Lab) -> None:
    """It ran on another backend, unseen. A socket that takes events as they happen hears that it was interrupted."""
    simulators = await lab.simulators(2)
    comfy = Comfy(lab.http, (await lab.gateway(*simulators)).url)
    script, ui = await comfy.listen("c"), await comfy.listen("c", "&events=interleave")
    ids = await one_by_one(comfy, 2, "c")
    await ui.next("progress", prompt_id=ids[1])
    assert (await comfy.post("/queue", {"delete": [ids[1]]}))[0] == 200
    await ui.next("execution_interrupted", prompt_id=ids[1])
    await ui.end_of(ids[1])
    await comfy.post("/interrupt", {})
    await script.end_of(ids[0])
    last = await comfy.prompt(slow(3, steps=1), "c")
    await script.end_of(last)
    assert script.of(ids[1]) == []


async def test_a_delete_takes_out_a_prompt_that_has_ended_and_is_shown_as_pending(lab: Lab) -> None:
    """Its backend is slow to give the result. Meanwhile another prompt is shown as running."""
    simulators = await lab.simulators(2)
    comfy = Comfy(lab.http, (await lab.gateway(*simulators)).url)
    listener = await comfy.listen("c")
    async with lab.held(*simulators):
        first = await comfy.prompt(slow(1, steps=1), "c")
        await comfy.running(first)
        slow_one = simulators[1 - [await running_there(lab, [each]) for each in simulators].index(1)]
        second = await comfy.prompt(slow(2, steps=1), "c")
        await comfy.running(second)
        await slow_one.fault(lab.http, "slow:5")
        await slow_one.no_faults(lab.http, "silent")

        async def is_fetched() -> bool:
            return "GET /history/{prompt_id}" in await slow_one.requests(lab.http)

        await until(is_fetched, what="the gateway fetches the result")
        assert ids_of((await comfy.get("/queue"))["queue_pending"]) == [second]
        assert (await comfy.post("/queue", {"delete": [second]}))[0] == 200
        queue = await comfy.get("/queue")
        assert (ids_of(queue["queue_running"]), queue["queue_pending"]) == ([first], [])
        await slow_one.no_faults(lab.http)
    await listener.end_of(first)
    assert list(await comfy.get("/history")) == [first]
    assert listener.of(second) == []


def heights(listener: Listener, prompt_id: str) -> list[int]:
    """The values of a prompt's progress, in the order in which they were told."""
    told = [event for event in listener.heard if event["data"].get("prompt_id") == prompt_id]
    return [event["data"]["value"] for event in told if event["type"] == "progress"]


async def test_progress_goes_forward_when_a_backend_dies(lab: Lab) -> None:
    """For a client of one ComfyUI the bar waits; one that takes events as they happen sees the second run begin."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    script, ui = await comfy.listen("c"), await comfy.listen("c", "&events=interleave")
    prompt_id = await comfy.prompt(slow(steps=20, step_seconds=0.03), "c")
    await script.next("progress", value=8)
    runs_on = [n for n, simulator in enumerate(simulators) if await running_there(lab, [simulator])]
    await simulators[runs_on[0]].kill()
    for listener in (script, ui):
        await listener.end_of(prompt_id)
    values = heights(script, prompt_id)
    assert values == list(range(1, 21))
    assert script.of(prompt_id).count("executing") == len(ui_nodes := _nodes(script, prompt_id)) == len(set(ui_nodes))
    again = heights(ui, prompt_id)
    assert any(later < earlier for earlier, later in itertools.pairwise(again))
    assert again[-20:] == list(range(1, 21))


def _nodes(listener: Listener, prompt_id: str) -> list[str | None]:
    told = [event["data"] for event in listener.heard if event["type"] == "executing"]
    return [data["node"] for data in told if data["prompt_id"] == prompt_id]


async def test_an_interrupt_ends_a_prompt_that_waits_to_run_again(lab: Lab) -> None:
    """Its only backend is gone. For its client it runs still, so POST /interrupt ends it."""
    simulator = await lab.simulator()
    comfy = Comfy(lab.http, (await lab.gateway(simulator)).url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(**LONG), "c")
    await listener.next("progress")
    await simulator.kill()

    async def waits() -> bool:
        return bool((await comfy.get("/gateway/backends"))["jobs_waiting"])

    await until(waits, what="it waits to run again")
    assert ids_of((await comfy.get("/queue"))["queue_running"]) == [prompt_id]
    assert (await comfy.post("/interrupt", {}))[0] == 200
    await listener.next("execution_interrupted", prompt_id=prompt_id)
    await listener.end_of(prompt_id)
    assert (await comfy.entry(prompt_id))["status"]["messages"][-1][0] == "execution_interrupted"
