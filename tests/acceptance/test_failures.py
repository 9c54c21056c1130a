"""Backends that die, hang, block, restart; a gateway that restarts."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp

from gateway.simulator.nodes import seed_colour
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, until
from tests.support.pictures import colour
from tests.support.workflows import failing, slow, text_to_image


async def test_a_killed_backends_jobs_end_elsewhere(lab: Lab) -> None:
    """Pending and running ones, under the same ids; a socket hears of one start and one end each."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", "&events=interleave")
    async with lab.held(*simulators, after=2):
        seeds = {await comfy.prompt(slow(n, steps=8), "c"): n for n in range(9)}
        await listener.next("progress")
        await simulators[0].kill()
    for prompt_id, seed in seeds.items():
        entry = await comfy.entry(prompt_id)
        assert entry["status"]["status_str"] == "success"
        assert entry["prompt"][1] == prompt_id
        assert colour(await comfy.view(comfy.images(entry)[0])) == seed_colour(seed)
    while set(_ended(listener)) != set(seeds):
        await listener.receive()
    for prompt_id in seeds:
        types = listener.of(prompt_id)
        assert types.count("execution_start") == 1
        assert types.count("execution_success") == 1
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}


def _ended(listener: object) -> list[str]:
    heard = listener.heard  # type: ignore[attr-defined]
    return [e["data"]["prompt_id"] for e in heard if e["type"] == "executing" and e["data"]["node"] is None]


async def test_a_hanging_backend_delays_nobody(lab: Lab) -> None:
    """It accepts connections and never answers: the others are probed and used meanwhile."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators, probe__timeout=0.5, dispatch__send_timeout=1)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "hang")

    async def slow_state() -> bool:
        backends = (await comfy.get("/gateway/backends"))["backends"]
        return bool(backends[0]["state"] == "slow")

    await until(slow_state, what="seen as slow")
    ids = [await comfy.prompt(slow(n)) for n in range(6)]
    for prompt_id in ids:
        await comfy.entry(prompt_id)
    await simulators[0].no_faults(lab.http)


async def test_a_backend_that_swallows_a_prompt(lab: Lab) -> None:
    """It takes the request and never answers it: the client has its answer all the same, and the prompt runs later."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(
        simulator, probe__timeout=0.5, probe__interval=0.5, probe__lost_after=3, dispatch__send_timeout=0.3
    )
    comfy = Comfy(lab.http, gateway.url)
    await simulator.fault(lab.http, "hang")
    prompt_id = await comfy.prompt(slow())
    await simulator.no_faults(lab.http)
    assert [item[1] for item in (await comfy.get("/queue"))["queue_pending"]] == [prompt_id]
    assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"


async def test_a_stopped_backend_is_lost_and_its_copies_cancelled_when_it_comes_back(lab: Lab) -> None:
    """SIGSTOP for longer than lost_after: its jobs run elsewhere; continued, it must not run them again."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, probe__timeout=0.5, probe__lost_after=1.5)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "silent")
    async with lab.held(simulators[1]):
        ids = [await comfy.prompt(slow(n, steps=8)) for n in range(6)]
        await comfy.running(ids[0])
        simulators[0].signal(signal.SIGSTOP)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    simulators[0].signal(signal.SIGCONT)
    await lab.backends_up(gateway, 2)

    async def idle() -> bool:
        queue = await Comfy(lab.http, simulators[0].url).get("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]

    await until(idle, what="no copy is left")
    assert len(await comfy.get("/history")) == 6


async def test_a_blocked_backend_is_slow_not_dead(lab: Lab) -> None:
    """Loading a model blocks its loop for 10 s: nothing is sent elsewhere, nothing runs twice, no event is lost."""
    simulators = await lab.simulators(2, "--load-seconds", "10", "--block-loop")
    gateway = await lab.gateway(*simulators, probe__timeout=1, probe__lost_after=30)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c", "&events=interleave")
    first = [await comfy.prompt(text_to_image(seed), "c") for seed in (1, 2)]
    for prompt_id in first:
        await comfy.entry(prompt_id, 40)
    for prompt_id in first:
        while prompt_id not in _ended(listener):
            await listener.receive()
        assert listener.of(prompt_id).count("executing") >= 3
    posts = [(await simulator.requests(lab.http))["POST /prompt"] for simulator in simulators]
    assert posts == [1, 1]


async def test_a_restarted_backend_has_lost_its_jobs(lab: Lab) -> None:
    """Killed and started again at once on the same port: what it had goes again."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, probe__interval=0.5)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n, steps=20)) for n in range(3)]
    await comfy.running(ids[0])
    await simulator.kill()
    await lab.simulator(port=simulator.port)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"


async def test_a_job_that_kills_every_backend_is_given_up(lab: Lab) -> None:
    """After `attempts` it ends as a failure, with a history entry that says why."""
    simulators = await lab.simulators(3, "--fail", "die-in-job")
    gateway = await lab.gateway(*simulators, dispatch__attempts=2)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(), "c")
    await listener.next("execution_error", exception_type="BackendLost")
    await listener.end_of(prompt_id)
    entry = await comfy.entry(prompt_id)
    assert "2 attempts" in entry["status"]["messages"][-1][1]["exception_message"]


async def test_the_gateway_is_restarted_in_mid_job(lab: Lab) -> None:
    """Killed and started again: history, images, queue and the events of running jobs go on."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    done = await comfy.prompt(slow(0x0A0B0C), "c")
    before = await comfy.entry(done)
    async with lab.held(*simulators, after=2):
        ids = [await comfy.prompt(slow(n, steps=8), "c") for n in range(6)]
        await comfy.running(ids[0])
        queue = await comfy.get("/queue")
        await gateway.kill()
        again = await lab.gateway(*simulators)
        comfy = Comfy(lab.http, again.url)
        assert await comfy.entry(done) == before
        assert colour(await comfy.view(comfy.images(before)[0])) == seed_colour(0x0A0B0C)
        listener = await comfy.listen("c")
        assert _items(await comfy.get("/queue")) == _items(queue) == set(ids)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
        while prompt_id not in _ended(listener):
            await listener.receive()
    posts = [(await simulator.requests(lab.http))["POST /prompt"] for simulator in simulators]
    assert sum(posts) == 7
    number = (await comfy.post("/prompt", {"prompt": slow()}))[1]["number"]
    assert number == 7


def _items(queue: dict[str, list[list[object]]]) -> set[object]:
    return {item[1] for items in queue.values() for item in items}


async def test_sigterm_leaves_the_jobs_running(lab: Lab) -> None:
    """It closes its sockets with 1001 and ends with 0; the backend runs on, and the next start finds the end."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(steps=40), "c")
    await comfy.running(prompt_id)
    assert await gateway.stop() == 0
    while not (event := await listener.receive())["type"].startswith("closed"):
        pass
    assert event["data"]["code"] == 1001
    again = await lab.gateway(simulator)
    assert (await Comfy(lab.http, again.url).entry(prompt_id))["status"]["status_str"] == "success"


async def test_a_second_gateway_on_the_same_directory_is_refused(lab: Lab) -> None:
    simulator = await lab.simulator()
    await lab.gateway(simulator)
    command = ["-m", "gateway", "serve", "--backend", simulator.url, "--port", "0", "--data-dir"]
    process = await asyncio.create_subprocess_exec(
        str(Path(__import__("sys").executable)),
        *command,
        str(lab.directory / "data"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert b"in use by another gateway" in error


async def test_an_old_backend_that_mints_its_own_ids(lab: Lab) -> None:
    """Its id is an alias: the client sees its own everywhere."""
    simulator = await lab.simulator("--fail", "no-prompt-id", "--fail", "no-metadata")
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(slow(steps=10), "c")
    entry = await comfy.entry(prompt_id)
    assert entry["prompt"][1] == prompt_id
    assert {data["prompt_id"] for _, data in entry["status"]["messages"]} == {prompt_id}
    await listener.end_of(prompt_id)
    told = {e["data"]["prompt_id"] for e in listener.heard if "prompt_id" in e["data"]}
    assert told == {prompt_id}
    assert any(e["type"] == "binary 1" for e in listener.heard)


async def test_drain(lab: Lab) -> None:
    """A drained backend gets nothing new and finishes what it has."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    status, described = await comfy.post("/gateway/backends/b1/drain")
    assert (status, described["drained"]) == (200, True)
    for n in range(4):
        await comfy.entry(await comfy.prompt(slow(n, steps=1)))
    assert (await simulators[0].requests(lab.http)).get("POST /prompt", 0) == 0
    await comfy.post("/gateway/backends/b1/resume")
    await comfy.entry(await comfy.prompt(slow(9, steps=1)))
    assert (await simulators[0].requests(lab.http))["POST /prompt"] == 1
    assert (await comfy.post("/gateway/backends/nope/drain"))[0] == 404


async def test_a_backend_that_refuses_for_a_while(lab: Lab) -> None:
    """Its jobs go elsewhere at once; when it listens again, what it still had of them is taken off it."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].fault(lab.http, "silent")
    async with lab.held(simulators[1]):
        ids = [await comfy.prompt(slow(n, steps=8)) for n in range(6)]
        await comfy.running(ids[0])
        await simulators[0].fault(lab.http, "refuse:2")
        await lab.backends_up(gateway, 1)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    await lab.backends_up(gateway, 2)
    assert len(await comfy.get("/history")) == 6


async def test_dropped_sockets_lose_nothing(lab: Lab) -> None:
    """The gateway's own socket to a backend breaks in mid-job: it reconnects, reconciles, and every job ends."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    ids = [await comfy.prompt(slow(n, steps=10), "c") for n in range(4)]
    await listener.next("progress")
    await simulator.fault(lab.http, "drop-socket")
    await asyncio.sleep(0.3)
    await simulator.no_faults(lab.http)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
        while prompt_id not in _ended(listener):
            await listener.receive()
    assert (await simulator.requests(lab.http))["POST /prompt"] == 4


async def test_what_started_while_nobody_listened_is_told_from_its_start(lab: Lab) -> None:
    """The gateway's socket is down while jobs start and end: their clients hear whole stories all the same."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    ids = [await comfy.prompt(slow(n, steps=steps), "c") for n, steps in enumerate((20, 3, 3))]
    await listener.next("progress")
    await simulator.fault(lab.http, "drop-socket")
    await idle(lab, simulator.url)
    await simulator.no_faults(lab.http)
    while not set(ids) <= set(_ended(listener)):
        await listener.receive()
    for prompt_id in ids:
        types = listener.of(prompt_id)
        assert types[0] == "execution_start"
        assert types.count("execution_start") == 1


async def idle(lab: Lab, url: str) -> None:
    """Wait until nothing is left there."""

    async def look() -> bool:
        remaining = (await Comfy(lab.http, url).get("/prompt"))["exec_info"]["queue_remaining"]
        return bool(remaining == 0)

    await until(look, what=f"{url} is idle")


async def test_a_second_run_does_not_tell_what_was_missed_of_the_first(lab: Lab) -> None:
    """The execution_cached of the first went by unheard; that of the second would come late (chaos, seed 2)."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__work_stealing=False)
    comfy, there = Comfy(lab.http, gateway.url), Comfy(lab.http, simulators[0].url)
    listener = await comfy.listen("c")
    await comfy.post("/gateway/backends/b2/drain")
    first = await comfy.prompt(slow(1, steps=1000, step_seconds=0.05))
    for simulator in simulators:
        await simulator.fault(lab.http, "silent")
    second = await comfy.prompt(slow(2, steps=10), "c")
    await there.running(gateway.upstream_ids()[first])
    await simulators[0].fault(lab.http, "drop-socket")
    # The second one must not begin while the gateway hears it.
    await there.post("/interrupt")
    await there.running(gateway.upstream_ids()[second])

    async def is_connected() -> bool:
        return bool((await comfy.get("/gateway/backends"))["backends"][0]["connected"])

    await simulators[0].no_faults(lab.http, "drop-socket")
    await until(is_connected, what="the socket to the backend")
    await simulators[0].fault(lab.http, "silent:2")
    await listener.next("progress", prompt_id=second)
    await comfy.post("/gateway/backends/b2/resume")
    await simulators[0].kill()

    async def runs_again() -> bool:
        queue = await Comfy(lab.http, simulators[1].url).get("/queue")
        return any(item[1] == gateway.upstream_ids()[second] for item in queue["queue_running"])

    await until(runs_again, what="it runs on the other")
    await simulators[1].no_faults(lab.http)
    await listener.end_of(second)
    types = listener.of(second)
    assert types.count("execution_start") == 1
    assert "execution_cached" not in types


async def test_a_socket_that_comes_before_the_answer_hears_from_the_start(lab: Lab) -> None:
    """The job runs while its POST is not answered yet: a new socket must not be told of what is not told to anybody."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await simulator.fault(lab.http, "hold-answer")
    sending = asyncio.create_task(comfy.post("/prompt", {"prompt": slow(steps=60), "client_id": "c"}))

    async def running() -> bool:
        return [job["status"] for job in (await comfy.get("/api/jobs"))["jobs"]] == ["in_progress"]

    await until(running, what="it runs")
    listener = await comfy.listen("c")
    await asyncio.sleep(0.2)
    await simulator.no_faults(lab.http)
    prompt_id = (await sending)[1]["prompt_id"]
    await listener.end_of(prompt_id)
    types = listener.of(prompt_id)
    assert types[:2] == ["execution_start", "execution_cached"]
    assert types.count("execution_start") == 1


async def test_a_backend_that_is_back_keeps_what_waits(lab: Lab) -> None:
    """It refused for a moment, and nobody else could take its jobs: it has them still, and they are not sent again."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    async with lab.held(simulator):
        ids = [await comfy.prompt(slow(n), "c") for n in range(2)]
        await comfy.running(ids[0])
        await simulator.fault(lab.http, "refuse:0.3")
        await lab.backends_up(gateway, 0)
        await lab.backends_up(gateway, 1)
    for prompt_id in ids:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
        while prompt_id not in _ended(listener):
            await listener.receive()
        assert listener.of(prompt_id).count("execution_start") == 1
    assert (await simulator.requests(lab.http))["POST /prompt"] == 2


async def test_a_backend_that_fails_at_prompts_for_a_while(lab: Lab) -> None:
    """A prompt that was accepted rests and is tried again; one that was not is refused."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, dispatch__max_queue=1, dispatch__attempts=100)
    comfy = Comfy(lab.http, gateway.url)
    first = await comfy.prompt(slow(1, steps=1000))
    waiting = [await comfy.prompt(slow(seed)) for seed in (2, 3)]
    await comfy.running(first)
    await simulator.fault(lab.http, "500:/prompt")
    await comfy.post("/interrupt", {"prompt_id": first})

    async def failed() -> bool:
        return (await simulator.requests(lab.http))["POST /prompt"] >= 3

    await until(failed, what="the next is offered and fails")
    await simulator.no_faults(lab.http)
    for prompt_id in waiting:
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"


async def test_what_was_cancelled_stays_so_though_the_gateway_is_killed(lab: Lab) -> None:
    """The answer to a cancel is the caller's: no start of the gateway may bring the job back."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, dispatch__max_queue=1)
    comfy = Comfy(lab.http, gateway.url)
    running = await comfy.prompt(slow(1, steps=1000))
    waiting = [await comfy.prompt(slow(seed)) for seed in range(2, 12)]
    await comfy.running(running)
    await comfy.post("/queue", {"delete": waiting})
    await gateway.kill()
    again = await lab.gateway(simulator)
    assert _items(await Comfy(lab.http, again.url).get("/queue")) == {running}


async def test_texts_that_are_none_end_nothing_but_themselves(lab: Lab) -> None:
    """Half a surrogate pair is legal in JSON, and on Linux in a file's name; SQLite and the log take neither."""
    gateway = await lab.gateway(await lab.simulator())
    comfy = Comfy(lab.http, gateway.url)
    outcomes = []
    for prompt in (slow(prefix="\udcff"), failing("\ud800"), slow(2)):
        entry = await comfy.entry(await comfy.prompt(prompt, "\ud800"))
        outcomes.append(entry["status"]["status_str"])
    assert outcomes == ["success", "error", "success"]


async def test_after_a_restart_requests_wait_until_open_jobs_are_accounted_for(lab: Lab) -> None:
    """Late rather than refused or wrong: /readyz says `starting` until the backends have said what they have."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, server__port=0)
    comfy, port = Comfy(lab.http, gateway.url), gateway.port
    ended, running = await comfy.prompt(slow(1, steps=5)), await comfy.prompt(slow(2, steps=1000, step_seconds=0.1))
    await comfy.running(ended)
    await gateway.kill()
    there = Comfy(lab.http, simulator.url)
    await there.running(gateway.upstream_ids()[running])
    await simulator.fault(lab.http, "slow:1")
    starting = asyncio.create_task(lab.gateway(simulator, options=("--no-auth", "--port", str(port))))

    async def is_starting() -> bool:
        try:
            async with lab.http.get(f"{gateway.url}/readyz") as answer:
                return answer.status == 503 and (await answer.json())["status"] == "starting"
        except aiohttp.ClientConnectionError:
            return False

    await until(is_starting, what="listening and not ready")
    asked = asyncio.create_task(comfy.get("/queue"))
    sent = asyncio.create_task(comfy.prompt(slow(3)))
    assert await is_starting()
    assert not asked.done()
    # The journal knew one as running, which ended meanwhile, and the other as pending, which runs.
    queue = await asked
    assert {item[1] for item in queue["queue_running"] + queue["queue_pending"]} <= {ended, running, await sent}
    await starting
    await simulator.no_faults(lab.http)
    await comfy.running(running)
    await comfy.post("/interrupt", {"prompt_id": running})
    assert (await comfy.entry(await sent))["status"]["status_str"] == "success"
    assert (await comfy.entry(ended))["status"]["status_str"] == "success"
    assert (await simulator.requests(lab.http))["POST /prompt"] == 3
