"""A graph that leaves a GPU unusable costs two backends at most, and nobody but its tenant is touched or told."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from tests.support.backend_state import described
from tests.support.comfy_client import Comfy
from tests.support.keys_api import audit
from tests.support.lab import Lab, until
from tests.support.metrics import metric
from tests.support.tenancy import caller, serve, write_config
from tests.support.workflows import failing, slow

ASSERT = "CUDA error: device-side assert triggered"


def error_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The error of a history entry."""
    messages = dict(entry["status"]["messages"])
    found: dict[str, Any] = messages["execution_error"]
    return found


async def test_the_third_backend_is_spared(lab: Lab) -> None:
    simulators = await lab.simulators(4)
    config = write_config(lab, simulators, {}, {})
    gateway = await serve(lab, config, 4, dispatch__backoff=0.05)
    anna, ben, boss = (caller(lab, gateway, name) for name in ("anna", "ben", "boss"))
    # Two backends are busy, and the same graph waits behind that. Two more come, and steal from them.
    for name in ("b1", "b2"):
        await boss.post(f"/gateway/backends/{name}/drain")
    for simulator in simulators[2:]:
        await simulator.fault(lab.http, "silent")
    busy = [await anna.prompt(slow(seed)) for seed in (1, 2)]
    for prompt_id in busy:
        await anna.running(prompt_id)
    ids = await asyncio.gather(*(anna.prompt(failing(ASSERT)) for _ in range(8)))
    for name in ("b1", "b2"):
        await boss.post(f"/gateway/backends/{name}/resume")
    types = [error_of(await anna.entry(prompt_id))["exception_type"] for prompt_id in ids]
    assert set(types) == {"RuntimeError", "GraphRefused"}
    for simulator in simulators[2:]:
        await simulator.no_faults(lab.http)
    for prompt_id in busy:
        assert (await anna.entry(prompt_id))["status"]["status_str"] == "success"
    [graph] = (await boss.get("/gateway/poisonous"))["graphs"]
    assert graph["state"] == "remembered"
    assert (graph["tenant"], graph["node_id"], graph["class_type"]) == ("anna", "3", "FailNode")
    lost = [name for name in ("b1", "b2", "b3", "b4") if (await described(boss, name))["poisoned"]]
    assert sorted(graph["backends"]) == lost == ["b1", "b2"]

    status, told = await anna.post("/prompt", {"prompt": failing(ASSERT), "client_id": "c"})
    assert status == 400
    assert told["error"]["type"] == "graph_refused"
    assert told["error"]["extra_info"]["id"] == graph["id"]
    assert told["node_errors"]["3"]["class_type"] == "FailNode"
    assert not {"b1", "b2", "b3", "b4"} & set(re.findall(r"\w+", str(told)))
    for seed in (3, 4):
        assert (await anna.entry(await anna.prompt(slow(seed))))["status"]["status_str"] == "success"

    await gateway.kill()
    again = await serve(lab, config, 2)
    anna, ben, boss = (caller(lab, again, name) for name in ("anna", "ben", "boss"))
    assert (await anna.post("/prompt", {"prompt": failing(ASSERT)}))[1]["error"]["type"] == "graph_refused"
    assert await metric(lab, again, "graphs_refused") == 1
    # Another tenant's prompt with this graph is that tenant's own matter.
    body = {"prompt": failing(ASSERT)}
    assert (await ben.post("/prompt", body))[0] == 200
    path = f"/gateway/poisonous/{graph['id']}"
    async with lab.http.delete(again.url + path, headers=anna.headers) as answer:
        assert answer.status == 403
    for expected in (200, 404):
        async with lab.http.delete(again.url + path, headers=boss.headers) as answer:
            assert answer.status == expected, await answer.text()
    assert [line["what"] for line in audit(again, "graph_forgotten")] == [graph["id"]]
    assert (await anna.post("/prompt", {"prompt": failing(ASSERT)}))[0] == 200


async def test_a_sound_graph_is_a_suspect_until_it_ran_elsewhere(lab: Lab) -> None:
    """Its machine was at fault. Until that is known, the same graph waits and is refused, and another one runs."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators, dispatch__backoff=0.1)
    comfy = Comfy(lab.http, gateway.url)
    await comfy.post("/gateway/backends/b2/drain")
    await comfy.post("/gateway/backends/b3/drain")
    # While the first job is between two nodes, the GPU's memory goes bad.
    await simulators[0].fault(lab.http, "silent")
    first = await comfy.prompt(slow())
    await comfy.running(first)
    twin = await comfy.prompt(slow())
    await simulators[0].fault(lab.http, "poisoned")
    async with lab.http.delete(f"{simulators[0].url}/simulator/faults?fault=silent") as answer:
        assert answer.status == 200

    async def suspected() -> Any:
        return (await comfy.get("/gateway/poisonous"))["graphs"]

    [graph] = await until(suspected, what="suspected")
    assert (graph["state"], graph["prompt_id"]) == ("suspect", first)
    status, told = await comfy.post("/prompt", {"prompt": slow()})
    assert (status, told["error"]["type"]) == (400, "graph_refused")
    assert "runs once more" in told["error"]["details"]
    await simulators[1].fault(lab.http, "silent")
    await comfy.post("/gateway/backends/b2/resume")
    await comfy.running(first)
    await comfy.post("/gateway/backends/b3/resume")
    # The third backend is free, and the twin does not go there; other work does.
    other = await comfy.prompt(slow(seed=2))
    assert (await comfy.entry(other))["status"]["status_str"] == "success"
    assert (await comfy.get(f"/api/jobs/{twin}"))["status"] == "pending"
    await simulators[1].no_faults(lab.http)
    for prompt_id in (first, twin):
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
    assert await suspected() == []
    assert (await comfy.entry(await comfy.prompt(slow())))["status"]["status_str"] == "success"
    assert {line["event"] for line in gateway.log_lines() if line["event"].startswith("graph_")} == {
        "graph_suspected",
        "graph_cleared",
    }


async def test_without_another_backend_it_is_remembered_at_once(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    await simulator.fault(lab.http, "silent")
    await comfy.running(await comfy.prompt(slow()))
    ids = [await comfy.prompt(failing(ASSERT)) for _ in range(3)]
    await simulator.no_faults(lab.http)
    errors = [error_of(await comfy.entry(prompt_id)) for prompt_id in ids]
    assert errors[0]["exception_message"].strip() == ASSERT
    assert {error["exception_type"] for error in errors[1:]} <= {"RuntimeError", "GraphRefused"}
    assert (await comfy.post("/prompt", {"prompt": failing(ASSERT)}))[0] == 400
