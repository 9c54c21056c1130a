"""What a machine does to a job is not the job's end, and what is the job's own is told as it is."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.backend_state import described, posts
from tests.support.comfy_client import Comfy, Listener
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.workflows import failing, slow

ONCE = ("execution_start", "execution_cached")
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def check_story(listener: Listener, prompt_id: str, end: str) -> None:
    """One start, one end, the end last but for ``executing`` null; and nothing of another prompt's id."""
    told = [e for e in listener.heard if e["data"].get("prompt_id") == prompt_id]
    types = [event["type"] for event in told]
    assert [type_ for type_ in types if type_ in ENDS] == [end]
    assert types[0] == "execution_start"
    assert all(types.count(type_) <= 1 for type_ in ONCE)
    assert types[-2:] == [end, "executing"]
    assert told[-1]["data"]["node"] is None
    assert {e["data"]["prompt_id"] for e in listener.heard if "prompt_id" in e["data"]} == {prompt_id}


async def check_entry(comfy: Comfy, prompt_id: str, end: str) -> dict[str, Any]:
    """One entry, which tells of one run under the client's id; nothing is open any more."""
    entry = await comfy.entry(prompt_id)
    assert list(await comfy.get("/history")) == [prompt_id]
    messages = entry["status"]["messages"]
    assert [name for name, _ in messages if name in ENDS] == [end]
    assert {data["prompt_id"] for _, data in messages} == {prompt_id}
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    last: dict[str, Any] = messages[-1][1]
    return last


async def metric(lab: Lab, gateway: GatewayProcess, line: str) -> float:
    """A metric, by its name and labels as shown; 0 while it is not."""
    async with lab.http.get(f"{gateway.url}/metrics") as answer:
        text = await answer.text()
    return next((float(each.rsplit(" ", 1)[1]) for each in text.splitlines() if each.startswith(f"{line} ")), 0.0)


async def test_out_of_memory_runs_once_more_elsewhere(lab: Lab) -> None:
    """The one that was full is asked to free its memory; the client hears of one run."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__backoff=3600, dispatch__max_backoff=3600)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "oom")
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_success")
    await check_entry(comfy, prompt_id, "execution_success")
    assert await posts(lab, *simulators) == [1, 1]
    asked = [(await simulator.requests(lab.http)).get("POST /free", 0) for simulator in simulators]
    assert asked == [1, 0]
    retried = 'comfyui_gateway_jobs_retried_total{backend="b1",reason="memory"}'
    assert await metric(lab, gateway, retried) == 1


async def test_out_of_memory_with_nobody_else_runs_there_again(lab: Lab) -> None:
    """Its memory free, it can do it; the entry of the first run is not taken for that of the second."""
    simulator = await lab.simulator("--fail", "oom-until-free")
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(steps=30), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_success")
    await check_entry(comfy, prompt_id, "execution_success")
    assert len(await Comfy(lab.http, simulator.url).get("/history")) == 2


async def test_out_of_memory_everywhere_is_the_answer(lab: Lab) -> None:
    """Once more, and not a third time."""
    simulators = await lab.simulators(3, "--fail", "oom")
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_error")
    error = await check_entry(comfy, prompt_id, "execution_error")
    assert error["exception_type"] == "torch.OutOfMemoryError"
    assert sum(await posts(lab, *simulators)) == 2


async def test_a_failure_is_found_out_without_its_event(lab: Lab) -> None:
    """The gateway's socket was down as the job failed: its entry tells the same."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(steps=20), "c")
    await comfy.running(prompt_id)
    await simulators[0].fault(lab.http, "drop-socket")
    await simulators[0].fault(lab.http, "oom")
    there = await Comfy(lab.http, simulators[0].url).entry(gateway.upstream_ids()[prompt_id])
    assert there["status"]["messages"][-1][0] == "execution_error"
    assert prompt_id not in await comfy.get("/history")
    async with lab.http.delete(f"{simulators[0].url}/simulator/faults?fault=drop-socket") as answer:
        assert answer.status == 200
    await comfy.entry(prompt_id)
    await check_entry(comfy, prompt_id, "execution_success")


async def test_a_poisoned_process_gets_no_work_until_it_is_restarted(lab: Lab) -> None:
    """A broken connection is no restart, and a process that answers all else is not healed."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "poisoned")
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_success")
    await check_entry(comfy, prompt_id, "execution_success")
    assert (await described(comfy, "b1"))["poisoned"]
    assert await metric(lab, gateway, 'comfyui_gateway_backend_poisoned{backend="b1"}') == 1
    await simulators[0].fault(lab.http, "refuse:3")

    async def state(name: str) -> bool:
        return bool((await described(comfy, "b1"))["state"] == name)

    await until(lambda: state("gone"), what="its connections broke")
    await until(lambda: state("up"), what="it is back")
    for n in range(3):
        await comfy.entry(await comfy.prompt(slow(n)))
    assert await posts(lab, *simulators) == [1, 4]
    await simulators[0].kill()
    again = await lab.simulator(port=simulators[0].port)
    await lab.backends_up(gateway, 2)
    assert not (await described(comfy, "b1"))["poisoned"]
    await comfy.post("/gateway/backends/b2/drain")
    await comfy.entry(await comfy.prompt(slow(9)))
    assert await posts(lab, again) == [1]


async def test_what_is_held_against_a_backend_outlives_the_gateway(lab: Lab) -> None:
    """A process that can't use its GPU, an ejection, an admin's drain; that its user deletes the history heals none."""
    simulators = await lab.simulators(4)
    settings = {"ejection__after": 1, "ejection__first": 3600, "ejection__max_time": 3600}
    gateway = await lab.gateway(*simulators, **settings)
    comfy = Comfy(lab.http, gateway.url)
    for name in ("b3", "b4"):
        await comfy.post(f"/gateway/backends/{name}/drain")
    await simulators[0].fault(lab.http, "poisoned")
    await comfy.entry(await comfy.prompt(slow(1)))
    await comfy.post("/gateway/backends/b3/resume")
    await simulators[2].fault(lab.http, "broken")
    await comfy.entry(await comfy.prompt(slow(2)))
    await simulators[2].no_faults(lab.http)
    assert await posts(lab, *simulators) == [1, 1, 1, 0]
    await comfy.post("/history", {"clear": True})
    await gateway.kill()
    again = await lab.gateway(*simulators, up=2, **settings)
    comfy = Comfy(lab.http, again.url)

    async def all_connected() -> bool:
        return all(backend["connected"] for backend in (await comfy.get("/gateway/backends"))["backends"])

    await until(all_connected, what="all backends are connected")
    for name, what in (("b1", "poisoned"), ("b3", "ejected"), ("b4", "drained")):
        held = await described(comfy, name)
        assert [each for each in ("poisoned", "ejected", "drained") if held[each]] == [what]
    assert await metric(lab, again, 'comfyui_gateway_backend_poisoned{backend="b1"}') == 1
    for n in range(4):
        await comfy.entry(await comfy.prompt(slow(n)))
    assert await posts(lab, *simulators) == [1, 5, 1, 0]
    await simulators[0].kill()
    await lab.simulator(port=simulators[0].port)
    await lab.backends_up(again, 3)
    assert not (await described(comfy, "b1"))["poisoned"]


async def test_a_workflow_that_poisons_gets_no_third_process(lab: Lab) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(failing("CUDA error: device-side assert triggered"), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_error")
    await check_entry(comfy, prompt_id, "execution_error")
    await lab.backends_up(gateway, 1)


async def test_a_workflows_own_error_is_the_answer(lab: Lab) -> None:
    """Told at once, tried once; and a text that quotes a machine's failure is not one."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(failing("bad text: 'CUDA error: device-side assert triggered'"), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_error")
    error = await check_entry(comfy, prompt_id, "execution_error")
    assert error["exception_type"] == "RuntimeError"
    assert sum(await posts(lab, *simulators)) == 1
    await lab.backends_up(gateway, 2)


async def test_a_backend_that_fails_what_others_can_do_is_ejected_and_comes_back(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, ejection__after=2, ejection__first=4)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b1/drain")
    await comfy.entry(await comfy.prompt(slow(1)))
    await comfy.post("/gateway/backends/b1/resume")
    await simulators[0].fault(lab.http, "broken")
    line = 'comfyui_gateway_backend_ejected{backend="b1"}'

    async def ejected() -> bool:
        await comfy.entry(await comfy.prompt(slow(2)))
        return await metric(lab, gateway, line) == 1

    await until(ejected, what="ejected")
    assert (await described(comfy, "b1"))["ejected"]
    await simulators[0].no_faults(lab.http)

    async def back() -> bool:
        return await metric(lab, gateway, line) == 0

    await until(back, what="back")
    before = (await posts(lab, *simulators))[0]

    async def used() -> bool:
        await comfy.entry(await comfy.prompt(slow(3)))
        return (await posts(lab, *simulators))[0] > before

    await until(used, what="it gets work again")


async def test_an_ejected_backend_is_used_if_no_other_is_left(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, ejection__after=1, ejection__first=3600)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b1/drain")
    await comfy.entry(await comfy.prompt(slow(1)))
    await comfy.post("/gateway/backends/b1/resume")
    await simulators[0].fault(lab.http, "broken")
    await comfy.entry(await comfy.prompt(slow(2)))
    await simulators[0].no_faults(lab.http)
    await until(lambda: metric(lab, gateway, 'comfyui_gateway_backend_ejected{backend="b1"}'), what="ejected")
    await simulators[1].kill()
    entry = await comfy.entry(await comfy.prompt(slow(3)))
    assert entry["status"]["status_str"] == "success"


async def test_what_had_begun_fails_if_it_must_not_run_again(lab: Lab) -> None:
    """Its entry says why; what had not begun there goes elsewhere."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__rerun_started="false")
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b2/drain")
    listener = await comfy.listen("c")
    begun = await comfy.prompt(slow(1, steps=1000), "c")
    pending = await comfy.prompt(slow(2))
    await comfy.running(begun)
    await comfy.post("/gateway/backends/b2/resume")
    await simulators[0].kill()
    await listener.end_of(begun)
    check_story(listener, begun, "execution_error")
    assert (await comfy.entry(pending))["status"]["status_str"] == "success"
    error = (await comfy.entry(begun))["status"]["messages"][-1][1]
    assert error["exception_type"] == "BackendLost"
    assert "rerun_started" in error["exception_message"]
    assert await posts(lab, simulators[1]) == [1]


async def lost_twice(comfy: Comfy) -> None:
    """Wait until two backends have died of the one job, and let the third one take work again."""

    async def waits() -> bool:
        known = await comfy.get("/gateway/backends")
        gone = [backend for backend in known["backends"] if backend["state"] == "gone"]
        return len(gone) == 2 and known["jobs_waiting"] == 1

    await until(waits, what="it waits in the gateway")
    await comfy.post("/gateway/backends/b3/resume")


async def test_a_job_lost_again_waits_before_it_is_sent(lab: Lab) -> None:
    """Two processes die of it; though a backend is up then, it has to wait, and others need not."""
    simulators = await lab.simulators(2, "--fail", "die-in-job")
    third = await lab.simulator()
    gateway = await lab.gateway(
        *simulators, third, dispatch__attempts=9, dispatch__backoff=3600, dispatch__max_backoff=3600
    )
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b3/drain")
    prompt_id = await comfy.prompt(slow())
    await lost_twice(comfy)
    for n in range(3):
        assert (await comfy.entry(await comfy.prompt(slow(n))))["status"]["status_str"] == "success"
    assert [item[1] for item in (await comfy.get("/queue"))["queue_pending"]] == [prompt_id]
    assert await posts(lab, third) == [3]


async def test_after_the_wait_it_goes(lab: Lab) -> None:
    simulators = await lab.simulators(2, "--fail", "die-in-job")
    third = await lab.simulator()
    gateway = await lab.gateway(*simulators, third, dispatch__attempts=9, dispatch__backoff=1, probe__interval=3600)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    await comfy.post("/gateway/backends/b3/drain")
    prompt_id = await comfy.prompt(slow(), "c")
    await lost_twice(comfy)
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_success")
    await check_entry(comfy, prompt_id, "execution_success")
    assert await metric(lab, gateway, 'comfyui_gateway_jobs_retried_total{backend="b1",reason="lost"}') == 1


async def idle(lab: Lab, *simulators: Simulator) -> None:
    """Wait until nothing of ours is left on them."""

    async def look() -> bool:
        queues = [await Comfy(lab.http, simulator.url).get("/queue") for simulator in simulators]
        return not any(queue["queue_running"] or queue["queue_pending"] for queue in queues)

    await until(look, what="nothing is left on the backends")


async def test_a_job_that_says_nothing_is_said(lab: Lab) -> None:
    """While it is silent by the metric, in the log once; when it goes on it is no longer."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, dispatch__stall_after=0.5)
    comfy = Comfy(lab.http, gateway.url)
    await simulator.fault(lab.http, "silent")
    prompt_id = await comfy.prompt(slow(steps=100))
    line = 'comfyui_gateway_jobs_stalled{backend="b1"}'
    await until(lambda: metric(lab, gateway, line), what="stalled")
    assert (await comfy.get("/queue"))["queue_running"][0][1] == prompt_id
    probes = 'comfyui_gateway_probe_seconds_count{backend="b1",outcome="ok"}'
    so_far = await metric(lab, gateway, probes)

    async def a_while() -> bool:
        return await metric(lab, gateway, probes) > so_far + 8

    await until(a_while, what="it stays so for some looks more")
    await simulator.no_faults(lab.http)
    assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"

    async def over() -> bool:
        return await metric(lab, gateway, line) == 0

    await until(over, what="no longer stalled")
    said = [line for line in gateway.log_lines() if line["event"] == "job_stalled"]
    assert [each["prompt_id"] for each in said] == [prompt_id]


async def test_a_backend_with_a_stalled_job_gets_work_last(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__stall_after=0.5)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "silent")
    await comfy.post("/gateway/backends/b2/drain")
    stuck = await comfy.prompt(slow(0))
    await until(lambda: metric(lab, gateway, 'comfyui_gateway_jobs_stalled{backend="b1"}'), what="stalled")
    await comfy.post("/gateway/backends/b2/resume")
    for prompt_id in [await comfy.prompt(slow(n)) for n in range(1, 5)]:
        await comfy.entry(prompt_id)
    assert await posts(lab, *simulators) == [1, 4]
    await simulators[0].no_faults(lab.http)
    assert (await comfy.entry(stuck))["status"]["status_str"] == "success"


async def test_a_silent_job_fails(lab: Lab) -> None:
    """It is interrupted there, and told as an error once; one that tells of its progress may take its time."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__job_timeout=2)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "silent")
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(steps=1000), "c")
    lively = await comfy.prompt(slow(steps=60, step_seconds=0.05))
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_error")
    assert (await comfy.entry(lively))["status"]["status_str"] == "success"
    error = (await comfy.entry(prompt_id))["status"]["messages"][-1][1]
    assert error["exception_type"] == "JobTimeout"
    assert "no event for 2 s on b1" in error["exception_message"]
    await idle(lab, *simulators)
    assert await posts(lab, *simulators) == [1, 1]


async def test_a_silent_job_runs_elsewhere(lab: Lab) -> None:
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__job_timeout=2, dispatch__on_timeout="retry")
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "silent")
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_success")
    await idle(lab, *simulators)
    await check_entry(comfy, prompt_id, "execution_success")
    assert await posts(lab, *simulators) == [1, 1]


async def test_a_job_that_is_silent_everywhere_is_given_up(lab: Lab) -> None:
    """Also where there is one backend alone: its first run there is not taken for its second."""
    simulator = await lab.simulator("--fail", "silent")
    gateway = await lab.gateway(
        simulator, dispatch__job_timeout=0.5, dispatch__on_timeout="retry", dispatch__attempts=2
    )
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_error")
    error = await check_entry(comfy, prompt_id, "execution_error")
    assert "2 attempts" in error["exception_message"]
    await idle(lab, simulator)
    there = await Comfy(lab.http, simulator.url).get("/history")
    assert [entry["status"]["messages"][-1][0] for entry in there.values()] == ["execution_interrupted"] * 2


async def test_a_backend_that_heeds_no_interrupt(lab: Lab) -> None:
    """While its job goes on there it gets no other, and those behind it go elsewhere; then it gets work again."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__job_timeout=2)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "deaf")
    await comfy.post("/gateway/backends/b2/drain")
    stuck, behind = await comfy.prompt(slow(1, steps=1000)), await comfy.prompt(slow(2))
    assert (await comfy.entry(stuck))["status"]["status_str"] == "error"
    await comfy.post("/gateway/backends/b2/resume")
    for n in range(3):
        await comfy.entry(await comfy.prompt(slow(n)))
    assert (await comfy.entry(behind))["status"]["status_str"] == "success"
    assert await posts(lab, *simulators) == [2, 4]
    assert await Comfy(lab.http, simulators[0].url).get("/history") == {}
    await simulators[0].no_faults(lab.http)
    await lab.backends_up(gateway, 2)
    await idle(lab, *simulators)
    there = await Comfy(lab.http, simulators[0].url).get("/history")
    assert [entry["prompt"][2] for entry in there.values()] == [slow(1, steps=1000)]


@pytest.mark.parametrize("state", ["waiting", "sending", "pending", "running"])
async def test_a_deadline_that_passes(lab: Lab, state: str) -> None:
    """Wherever the job is: one entry that says why, a socket that hears of its end, and nothing left on the backend."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, dispatch__send_timeout=0.3, dispatch__max_queue=2, probe__interval=3600)
    comfy = Comfy(lab.http, gateway.url)
    if state == "sending":
        await simulator.fault(lab.http, "hold-prompt")
    before = [await comfy.prompt(slow(steps=1000)) for _ in range({"waiting": 2, "pending": 1}.get(state, 0))]
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(steps=1000), "c", extra_data={"deadline_seconds": 3})
    await listener.end_of(prompt_id)
    check_story(listener, prompt_id, "execution_interrupted")
    await comfy.post("/api/jobs/cancel", {"job_ids": before})
    await simulator.no_faults(lab.http)
    await idle(lab, simulator)
    entry = await comfy.entry(prompt_id)
    assert [name for name, _ in entry["status"]["messages"]] == ["execution_start", "execution_interrupted"]
    assert entry["status"]["messages"][-1][1]["exception_message"] == "deadline of 3 s passed"
    assert entry["prompt"][3]["deadline_seconds"] == 3
    assert (await comfy.get(f"/api/jobs/{prompt_id}"))["status"] == "cancelled"
    logged = next(line for line in gateway.log_lines() if line["event"] == "job_deadline_passed")
    assert logged["state"] == state
    done = await Comfy(lab.http, simulator.url).get("/history")
    assert not [e for e in done.values() if e["status"]["completed"]]


async def test_a_deadline_for_all(lab: Lab) -> None:
    """A prompt's own goes before it, and one that ends in time is as any."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__deadline=1)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(steps=1000))
    longer = await comfy.prompt(slow(steps=75), extra_data={"deadline_seconds": 60})
    entry = await comfy.entry(prompt_id)
    assert entry["status"]["messages"][-1][1]["exception_message"] == "deadline of 1 s passed"
    assert (await comfy.entry(longer))["status"]["status_str"] == "success"


@pytest.mark.parametrize("state", ["waiting", "running"])
async def test_a_deadline_passes_while_the_gateway_is_down(lab: Lab, state: str) -> None:
    """It counts from the acceptance, so the job is not begun again, and what runs is interrupted."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    if state == "waiting":
        await simulator.fault(lab.http, "refuse:4")
        await lab.backends_up(gateway, 0)
    accepted = time.time()
    prompt_id = await comfy.prompt(slow(steps=1000), "c", extra_data={"deadline_seconds": 4})
    if state == "running":
        await comfy.running(prompt_id)
    await gateway.kill()

    async def passed() -> bool:
        return time.time() > accepted + 5

    await until(passed, what="the deadline has passed")
    again = await lab.gateway(simulator)
    comfy = Comfy(lab.http, again.url)
    interrupted = await check_entry(comfy, prompt_id, "execution_interrupted")
    assert interrupted["exception_message"] == "deadline of 4 s passed"
    await idle(lab, simulator)
    assert await posts(lab, simulator) == [1 if state == "running" else 0]
    assert len([line for line in again.log_lines() if line["event"] == "job_deadline_passed"]) == 1


async def test_a_restart_of_the_gateway_between_two_tries(lab: Lab) -> None:
    """What waited for its second try is in the journal, and goes when the gateway is back; there is one end of it."""
    simulator = await lab.simulator("--fail", "oom-until-free")
    gateway = await lab.gateway(simulator, dispatch__backoff=3600, dispatch__max_backoff=3600)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow(), "c")

    async def waits() -> bool:
        return (await comfy.get("/gateway/backends"))["jobs_waiting"] == 1

    await until(waits, what="it waits for its second try")
    await gateway.kill()
    comfy = Comfy(lab.http, (await lab.gateway(simulator)).url)
    await comfy.entry(prompt_id)
    await check_entry(comfy, prompt_id, "execution_success")
    assert await posts(lab, simulator) == [2]
