"""An idle backend steals jobs that have not started on a busy one."""

from __future__ import annotations

import signal
from typing import Any

from gateway.simulator.nodes import seed_colour
from tests.support.backend_history import history_there
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.pictures import colour
from tests.support.workflows import slow, text_to_image


async def one_busy_one_late(lab: Lab, *options: str, **settings: Any) -> tuple[list[Simulator], GatewayProcess]:
    """Two backends, the second of them down."""
    simulators = [await lab.simulator(), await lab.simulator(*options)]
    gateway = await lab.gateway(*simulators, **settings)
    await simulators[1].kill()
    await lab.backends_up(gateway, 1)
    return simulators, gateway


async def test_a_backend_that_comes_late_takes_its_share(lab: Lab) -> None:
    """Each job runs once, the client hears one story each, and the picture is its own."""
    simulators, gateway = await one_busy_one_late(lab)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", "&events=interleave")

    async def has_two() -> bool:
        return (await simulators[1].requests(lab.http)).get("POST /prompt", 0) >= 2

    async with lab.held(simulators[0]):
        seeds = {await comfy.prompt(slow(n, steps=5), "c"): n for n in range(8)}
        simulators[1] = await lab.simulator(port=simulators[1].port)
        await until(has_two, what="two jobs at the backend that came late")
    for prompt_id, seed in seeds.items():
        entry = await comfy.entry(prompt_id)
        assert entry["status"]["status_str"] == "success"
        assert colour(await comfy.view(comfy.images(entry)[0])) == seed_colour(seed)
    ran = [set(await history_there(lab, simulator)) for simulator in simulators]
    assert ran[0] | ran[1] == {gateway.upstream_ids()[prompt_id] for prompt_id in seeds}
    assert not ran[0] & ran[1]
    assert len(ran[1]) >= 2
    while {e["data"]["prompt_id"] for e in listener.heard if e["type"] == "execution_success"} != set(seeds):
        await listener.receive()
    for prompt_id in seeds:
        types = listener.of(prompt_id)
        assert types.count("execution_start") == types.count("execution_success") == 1
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        assert f'comfyui_gateway_takeovers_total{{backend="b1",target="b2"}} {len(ran[1])}.0' in await answer.text()


async def test_the_earliest_that_gains_by_it_goes(lab: Lab) -> None:
    """The first in the queue; the others stay, as the idle one is idle no more."""
    simulators, gateway = await one_busy_one_late(lab)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n, steps=1000, step_seconds=0.1)) for n in range(4)]
    await comfy.running(ids[0])
    simulators[1] = await lab.simulator(port=simulators[1].port)
    await comfy.running(ids[1])
    queue = await Comfy(lab.http, simulators[0].url).get("/queue")
    there = gateway.upstream_ids()
    assert [item[1] for item in queue["queue_running"]] == [there[ids[0]]]
    assert sorted(item[1] for item in queue["queue_pending"]) == sorted(there[each] for each in ids[2:])
    shown = await comfy.get("/queue")
    # One runs there as well; a client of one ComfyUI sees the one that began first.
    assert [item[1] for item in shown["queue_running"] + shown["queue_pending"]] == ids


async def test_only_to_where_it_can_run_and_only_what_is_ours(lab: Lab) -> None:
    simulators, gateway = await one_busy_one_late(lab, "--models", "other")
    other = Comfy(lab.http, simulators[0].url)
    theirs = [await other.prompt(slow(n, steps=1000, step_seconds=0.1)) for n in range(2)]
    comfy = Comfy(lab.http, gateway.url)
    ours = await comfy.prompt(text_to_image())
    simulators[1] = await lab.simulator("--models", "other", port=simulators[1].port)
    await lab.backends_up(gateway, 2)
    # What can run there goes there at once, so it was looked for and the others were passed over.
    await comfy.entry(await comfy.prompt(slow()))
    assert len(await history_there(lab, simulators[1])) == 1
    queue = await other.get("/queue")
    assert {item[1] for item in queue["queue_running"] + queue["queue_pending"]} == {
        *theirs,
        gateway.upstream_ids()[ours],
    }


async def test_it_can_be_switched_off(lab: Lab) -> None:
    simulators, gateway = await one_busy_one_late(lab, dispatch__work_stealing=False)
    comfy = Comfy(lab.http, gateway.url)
    async with lab.held(simulators[0]):
        ids = [await comfy.prompt(slow(n)) for n in range(4)]
        simulators[1] = await lab.simulator(port=simulators[1].port)
        await lab.backends_up(gateway, 2)
    for prompt_id in ids:
        await comfy.entry(prompt_id)
    assert await history_there(lab, simulators[1]) == {}


async def test_a_backend_that_does_not_give_back_keeps_its_job(lab: Lab) -> None:
    """It stops just then, and is lost: the job ends elsewhere; and what wakes again does not run it as well."""
    simulators, gateway = await one_busy_one_late(lab, probe__timeout=0.5, probe__lost_after=2, probe__interval=0.3)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "silent")
    ids = [await comfy.prompt(slow(n, steps=4)) for n in range(4)]
    await comfy.running(ids[0])
    simulators[0].signal(signal.SIGSTOP)
    simulators[1] = await lab.simulator(port=simulators[1].port)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    simulators[0].signal(signal.SIGCONT)
    await lab.backends_up(gateway, 2)

    async def idle() -> bool:
        queue = await Comfy(lab.http, simulators[0].url).get("/queue")
        return queue == {"queue_running": [], "queue_pending": []}

    await until(idle, what="nothing left on the backend that woke")
    assert len(await history_there(lab, simulators[1])) == 4


async def test_a_cancel_finds_a_job_on_the_move(lab: Lab) -> None:
    simulators, gateway = await one_busy_one_late(lab)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n, steps=1000, step_seconds=0.1)) for n in range(3)]
    await comfy.running(ids[0])
    # Asked to give a job back, it answers late.
    await simulators[0].fault(lab.http, "slow:1")
    simulators[1] = await lab.simulator(port=simulators[1].port)

    async def asked() -> bool:
        return (await simulators[0].requests(lab.http)).get("POST /queue", 0) > 0

    await until(asked, what="the backend asked to give back")
    assert (await comfy.post("/queue", {"delete": [ids[1]]}))[0] == 200
    await simulators[0].no_faults(lab.http)
    await comfy.running(ids[2])
    for prompt_id in (ids[0], ids[2]):
        await comfy.post("/interrupt")
        await comfy.entry(prompt_id)
    assert set(await comfy.get("/history")) == {ids[0], ids[2]}
    for simulator in simulators:
        entries = (await history_there(lab, simulator)).values()
        assert slow(1, steps=1000, step_seconds=0.1) not in [entry["prompt"][2] for entry in entries]


async def test_one_that_starts_before_it_is_given_back_stays(lab: Lab) -> None:
    simulators, gateway = await one_busy_one_late(lab)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n, steps=1000, step_seconds=0.1)) for n in range(2)]
    await comfy.running(ids[0])
    await simulators[0].fault(lab.http, "slow:3")
    simulators[1] = await lab.simulator(port=simulators[1].port)

    async def asked() -> bool:
        return (await simulators[0].requests(lab.http)).get("POST /queue", 0) > 0

    await until(asked, what="the backend asked to give back")
    # That request is on its way still; what comes after it is quick.
    await simulators[0].no_faults(lab.http)
    await comfy.post("/interrupt", {"prompt_id": ids[0]})
    await comfy.running(ids[1])
    # Its backend has been asked a second time by the time another prompt has gone through the idle one.
    await comfy.entry(await comfy.prompt(slow(9, steps=50, step_seconds=0.1)))
    queue = await Comfy(lab.http, simulators[0].url).get("/queue")
    assert [item[1] for item in queue["queue_running"]] == [gateway.upstream_ids()[ids[1]]]
    assert [item[1] for item in (await comfy.get("/queue"))["queue_running"]] == [ids[1]]
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        assert "comfyui_gateway_takeovers_total{" not in await answer.text()
