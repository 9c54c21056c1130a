"""Where prompts go."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.workflows import failing, slow, text_to_image


async def load_of(lab: Lab, simulator: Simulator) -> int:
    """How many prompts a backend has."""
    queue = await Comfy(lab.http, simulator.url).get("/queue")
    return len(queue["queue_running"]) + len(queue["queue_pending"])


async def probed_after(lab: Lab, gateway: GatewayProcess, pending: list[int]) -> None:
    """Wait until the gateway has seen these queues."""

    async def look() -> bool:
        backends = (await Comfy(lab.http, gateway.url).get("/gateway/backends"))["backends"]
        return [b["queue_running"] + b["queue_pending"] for b in backends] == pending

    await until(look, what=f"queues {pending}")


async def test_the_shortest_queue_wins(lab: Lab) -> None:
    """Work that others queued on the backends counts as well as ours."""
    simulators = await lab.simulators(3)
    for simulator, count in zip(simulators, (4, 1, 3), strict=True):
        for n in range(count):
            await Comfy(lab.http, simulator.url).prompt(slow(n, steps=1000, step_seconds=0.1))
    gateway = await lab.gateway(*simulators)
    await probed_after(lab, gateway, [4, 1, 3])
    comfy = Comfy(lab.http, gateway.url)
    for _ in range(2):
        await comfy.prompt(slow(9, steps=1000, step_seconds=0.1))
    assert [await load_of(lab, simulator) for simulator in simulators] == [4, 3, 3]
    for _ in range(3):
        await comfy.prompt(slow(9, steps=1000, step_seconds=0.1))
    assert sorted([await load_of(lab, simulator) for simulator in simulators]) == [4, 4, 5]


async def test_a_burst_within_one_probe_interval_spreads_evenly(lab: Lab) -> None:
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators, probe__interval=60, dispatch__max_queue=100)
    comfy = Comfy(lab.http, gateway.url)
    await asyncio.gather(*(comfy.prompt(slow(n, steps=1000, step_seconds=1)) for n in range(60)))
    assert [await load_of(lab, simulator) for simulator in simulators] == [20, 20, 20]


async def test_a_full_backend_gets_no_more_and_the_rest_waits(lab: Lab) -> None:
    """`max_queue` jobs a backend; the others are accepted, shown as pending, and go out as slots free."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, dispatch__max_queue=2)
    comfy = Comfy(lab.http, gateway.url)
    async with lab.held(*simulators):
        ids = [await comfy.prompt(slow(n, steps=4)) for n in range(8)]
        assert [await load_of(lab, simulator) for simulator in simulators] == [2, 2]
        assert (await comfy.get("/prompt"))["exec_info"]["queue_remaining"] == 8
        assert (await comfy.get("/gateway/backends"))["jobs_waiting"] == 4
    for prompt_id in ids:
        await comfy.entry(prompt_id)
    assert set(await comfy.get("/history")) == set(ids)
    async with lab.http.get(f"{gateway.url}/prompt") as answer:
        # To the byte, because scripts search the text.
        assert await answer.text() == '{"exec_info": {"queue_remaining": 0}}'


async def test_a_prompt_waits_while_no_backend_is_up(lab: Lab) -> None:
    simulator = await lab.simulator()
    await simulator.kill()
    gateway = await lab.gateway(simulator, up=0, dispatch__max_waiting=2)
    comfy = Comfy(lab.http, gateway.url)
    ids = [await comfy.prompt(slow(n)) for n in range(2)]
    assert [item[1] for item in (await comfy.get("/queue"))["queue_pending"]] == ids
    async with lab.http.post(f"{gateway.url}/prompt", json={"prompt": slow()}) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert (await answer.json())["error"]["type"] == "too_many_waiting"
    await lab.simulator(port=simulator.port)
    for prompt_id in ids:
        entry = await comfy.entry(prompt_id)
        assert entry["status"]["status_str"] == "success"


async def test_what_waits_has_so_many_bytes_at_most(lab: Lab) -> None:
    """They are in memory. One that ends leaves room."""
    simulator = await lab.simulator()
    await simulator.kill()
    gateway = await lab.gateway(simulator, up=0, dispatch__max_waiting_bytes=100_000)
    comfy = Comfy(lab.http, gateway.url)
    large = {"extra_pnginfo": {"text": "x" * 60_000}}
    prompt_id = await comfy.prompt(slow(1), extra_data=large)
    status, answer = await comfy.post("/prompt", {"prompt": slow(2), "extra_data": large})
    assert (status, answer["error"]["type"]) == (503, "too_many_waiting")
    assert "bytes of prompts" in answer["error"]["details"]
    assert (await comfy.post("/queue", {"delete": [prompt_id]}))[0] == 200
    await comfy.prompt(slow(2), extra_data=large)


async def test_a_refusing_backend_is_skipped(lab: Lab) -> None:
    """One process dies between two probes: the next prompt goes to another, and its answer is a plain 200."""
    simulators = await lab.simulators(2)
    gateway = await lab.gateway(*simulators, probe__interval=60)
    comfy = Comfy(lab.http, gateway.url)
    await simulators[0].kill()
    ids = [await comfy.prompt(slow(n)) for n in range(4)]
    for prompt_id in ids:
        await comfy.entry(prompt_id)


async def test_node_errors_go_through_unchanged_and_leave_nothing(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    body = {"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}, "prompt_id": str(uuid.uuid4())}
    answers = []
    for url in (simulator.url, gateway.url):
        async with lab.http.post(f"{url}/prompt", json=body) as answer:
            answers.append((answer.status, await answer.read(), answer.headers["Content-Type"]))
    assert answers[0] == answers[1]
    assert answers[0][0] == 400
    comfy = Comfy(lab.http, gateway.url)
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert await comfy.get("/history") == {}
    assert (await comfy.get("/api/jobs"))["jobs"] == []


async def test_an_answer_that_is_lost_is_asked_for(lab: Lab) -> None:
    """The body was sent and the connection broke: the backend is asked for the id, and the prompt runs once."""
    simulators = await lab.simulators(2)
    await simulators[0].fault(lab.http, "drop-answer")
    await simulators[1].fault(lab.http, "drop-answer")
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(slow())
    await comfy.entry(prompt_id)
    posts = [(await simulator.requests(lab.http)).get("POST /prompt", 0) for simulator in simulators]
    assert sorted(posts) == [0, 1]


async def test_the_same_id_again(lab: Lab) -> None:
    """With the same body it gets the first answer, with another one 409; also when the job has ended."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    body = {"prompt": slow(steps=5), "prompt_id": str(uuid.uuid4()), "client_id": "c"}
    first = await comfy.post("/prompt", body)
    assert first[0] == 200
    assert first[1]["prompt_id"] == body["prompt_id"]
    again = dict(reversed(body.items()))
    assert await comfy.post("/prompt", again) == first
    assert (await comfy.post("/prompt", {**body, "prompt": slow(2)}))[0] == 409
    await comfy.entry(str(body["prompt_id"]))
    assert await comfy.post("/prompt", body) == first
    assert (await comfy.post("/prompt", {**body, "client_id": "d"}))[0] == 409
    assert (await simulator.requests(lab.http))["POST /prompt"] == 1


async def test_bad_input(lab: Lab) -> None:
    """Everything that can't be a prompt gets ComfyUI's error form, and nothing is stored."""
    gateway = await lab.gateway(await lab.simulator(), server__max_body=20_000)
    cases: list[tuple[bytes, int, str]] = [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[1]", 400, "invalid_body"),
        (b"{}", 400, "no_prompt"),
        (b'{"prompt": []}', 400, "invalid_prompt"),
        (b'{"prompt": {"1": "x"}}', 400, "invalid_prompt"),
        (b'{"prompt": {}, "prompt_id": "ABC"}', 400, "invalid_prompt_id"),
        (b'{"prompt": {}, "prompt_id": 5}', 400, "invalid_prompt_id"),
        (b'{"prompt": {}, "extra_data": 5}', 400, "invalid_extra_data"),
        (b'{"prompt": {}, "number": "x"}', 400, "invalid_number"),
        (b'{"prompt": {}, "partial_execution_targets": 5}', 400, "invalid_targets"),
        (b'{"prompt": {}, "partial_execution_targets": false}', 400, "invalid_targets"),
        (b'{"prompt": {"1": ' + b"[" * 9000 + b"]" * 9000 + b"}}", 400, "graph_too_large"),
        (b'{"prompt": {"1": "' + b"x" * 30_000 + b'"}}', 413, "body_too_large"),
    ]
    for body, status, type_ in cases:
        async with lab.http.post(f"{gateway.url}/prompt", data=body) as answer:
            value = await answer.json()
            assert (answer.status, value["error"]["type"]) == (status, type_), (body[:60], value)
            assert value["node_errors"] == {}
            assert value["error"]["message"]
    comfy = Comfy(lab.http, gateway.url)
    assert await comfy.get("/queue") == {"queue_running": [], "queue_pending": []}


async def test_reads_see_the_callers_own_writes(lab: Lab) -> None:
    """A job is in /queue before POST /prompt returns, and never in neither /queue nor /history."""
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    missing: list[str] = []

    async def watch(prompt_id: str) -> None:
        while True:
            queue = await comfy.get("/queue")
            listed = [item[1] for items in queue.values() for item in items]
            if prompt_id in listed:
                continue
            if prompt_id not in await comfy.get(f"/history/{prompt_id}"):
                missing.append(prompt_id)
            return

    async def run(seed: int) -> None:
        await watch(await comfy.prompt(slow(seed, steps=1, step_seconds=0.01)))

    await asyncio.gather(*(run(seed) for seed in range(20)))
    assert not missing


async def test_no_poll_reaches_a_backend(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, probe__interval=60)
    comfy = Comfy(lab.http, gateway.url)
    prompt_id = await comfy.prompt(text_to_image())
    await comfy.entry(prompt_id)

    async def looked_at() -> bool:
        # A route that ComfyUI does not have is counted as one of its static files, without a path.
        return "GET " in await simulator.requests(lab.http)

    # The last thing that the gateway asks of its own accord is /readyz, to see whether the backend is a gateway.
    await until(looked_at)

    async def requests() -> dict[str, int]:
        """The requests, without those for new models: of these, there are few (test_new_models.py)."""
        return {
            route: count
            for route, count in (await simulator.requests(lab.http)).items()
            if not route.startswith(("GET /models", "GET /object_info"))
        }

    before = await requests()
    paths = ["/queue", "/prompt", "/history", f"/history/{prompt_id}", "/object_info", "/system_stats", "/api/jobs"]
    paths += [f"/api/jobs/{prompt_id}", "/object_info/KSampler", "/features", "/api/queue", "/api/object_info"]
    for _ in range(5):
        for path in paths:
            await comfy.get(path)
    assert await requests() == before


async def test_a_failing_workflow_is_the_answer(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(2))
    comfy = Comfy(lab.http, gateway.url)
    listener = await comfy.listen("c")
    prompt_id = await comfy.prompt(failing("no luck"), "c")
    error = await listener.next("execution_error")
    assert error["data"]["exception_message"].strip() == "no luck"
    entry = (await comfy.get(f"/history/{prompt_id}"))[prompt_id]
    assert entry["status"]["status_str"] == "error"
    assert (await comfy.get(f"/api/jobs/{prompt_id}"))["status"] == "failed"


async def test_numbers_are_unique_and_rise(lab: Lab) -> None:
    gateway = await lab.gateway(*await lab.simulators(3))
    comfy = Comfy(lab.http, gateway.url)
    answers: list[Any] = [(await comfy.post("/prompt", {"prompt": slow(n)}))[1] for n in range(9)]
    assert [answer["number"] for answer in answers] == list(range(9))
    assert (await comfy.post("/prompt", {"prompt": slow(1), "front": True}))[1]["number"] == -9
    assert (await comfy.post("/prompt", {"prompt": slow(1), "number": 2.5}))[1]["number"] == 2.5
