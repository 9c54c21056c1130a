"""Backends that differ: what a job requires of them, and jobs that run out of memory on the small ones."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.backend_history import history_there
from tests.support.backend_state import posts
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator
from tests.support.tenancy import BOSS, caller, key_of, serve, write_config
from tests.support.workflows import slow

SIZES = ("8", "16", "24")
LABELS = {"b1": ["small", "eu"], "b2": ["eu"], "b3": ["big"]}


async def three(lab: Lab) -> list[Simulator]:
    """Backends b1, b2 and b3 with GPUs of 8, 16 and 24 GB."""
    return list(await asyncio.gather(*(lab.simulator("--vram-gb", size) for size in SIZES)))


def requiring(lab: Lab, gateway: GatewayProcess, name: str, header: str) -> Comfy:
    """A caller that sends the header with each request."""
    return Comfy(lab.http, gateway.url, X_API_Key=key_of(name), X_Gateway_Require=header)


async def refusal(comfy: Comfy, **extra_data: Any) -> dict[str, Any]:
    """The error of a prompt that must be refused."""
    status, answer = await comfy.post("/prompt", {"prompt": slow(), "extra_data": extra_data})
    assert status == 400, answer
    assert set(answer) == {"error", "node_errors"}
    error: dict[str, Any] = answer["error"]
    return error


async def test_requirements(lab: Lab) -> None:
    """Of the prompt, in a header or in extra_data, and of the tenant; kept over a restart of the gateway."""
    simulators = await three(lab)
    tenants = {"named": {"anna": {"labels": ["eu"]}, "ben": {"require": ["vram>=16"]}}}
    config = write_config(lab, simulators, tenants, LABELS)
    gateway = await serve(lab, config, 3)
    boss, ben = caller(lab, gateway, BOSS), caller(lab, gateway, "ben")
    ids = [await boss.prompt(slow(n), extra_data={"gateway_require": "vram>8, vram<24"}) for n in range(3)]
    mine = [await ben.prompt(slow(3), extra_data={"gateway_require": "vram<24"})]
    mine.append(await requiring(lab, gateway, "ben", "big").prompt(slow(4)))
    for comfy, prompt_id in (*((boss, each) for each in ids), *((ben, each) for each in mine)):
        await comfy.entry(prompt_id)
    assert await posts(lab, *simulators) == [0, 4, 1]

    told = await refusal(requiring(lab, gateway, BOSS, "big"), gateway_require="vram<24")
    assert told["type"] == "requirement_unmet"
    assert told["details"] == "it requires vram<24,big"
    assert told["extra_info"]["backends"]["b1"] == {"labels": ["eu", "small"], "vram_gib": 8.0}
    # anna and ben hear nothing of the fleet: what only others have answers as what nobody has.
    anna = [await refusal(requiring(lab, gateway, "anna", each)) for each in ("vram>=24", "vram>=240", "big", "ghost")]
    texts = [json.dumps(each) for each in (*anna, await refusal(ben, gateway_require="small"))]
    asked = ("vram>=24", "vram>=240", "big", "ghost", "small")
    plain = {
        text.replace(f'"{own}"', "").replace(f"requires {own}", "") for text, own in zip(texts, asked, strict=True)
    }
    assert len(plain) == 1
    assert not any(name in text for text in texts for name in ("b1", "b2", "b3", "vram>=16", "backends"))

    bad = await refusal(requiring(lab, gateway, "anna", "vram>>24"))
    assert bad["type"] == "invalid_requirement"
    assert "'vram>>24'" in bad["details"]
    assert "such as vram>=24,fast" in bad["details"]
    assert (await refusal(ben, gateway_require=24))["type"] == "invalid_requirement"

    # The one that meets it is down: jobs wait for it, also in the next run of the gateway. With its label gone in a new
    # configuration, one of them would wait for ever.
    await simulators[2].kill()
    await lab.backends_up(gateway, 2)
    waits = await requiring(lab, gateway, BOSS, "vram>=24").prompt(slow(9))
    ends = await requiring(lab, gateway, BOSS, "big").prompt(slow(10))
    await gateway.stop()
    gateway = await serve(lab, write_config(lab, simulators, tenants, {**LABELS, "b3": []}), 2)
    boss = caller(lab, gateway, BOSS)
    name, last = (await boss.entry(ends))["status"]["messages"][-1]
    assert (name, last["exception_type"]) == ("execution_error", "RequirementUnmet")
    await boss.entry(await boss.prompt(slow(11)))
    assert [item[1] for item in (await boss.get("/queue"))["queue_pending"]] == [waits]
    again = await lab.simulator("--vram-gb", "24", port=simulators[2].port)
    assert (await boss.entry(waits))["status"]["status_str"] == "success"
    assert await posts(lab, again) == [1]


async def test_out_of_memory_goes_to_larger_devices(lab: Lab) -> None:
    """From one to the next larger one, and later jobs alike at once; until an admin has it forgotten."""
    simulators = await three(lab)
    gateway = await lab.gateway(*simulators, dispatch__backoff=0.05)
    comfy = Comfy(lab.http, gateway.url)
    for simulator in simulators[:2]:
        await simulator.fault(lab.http, "oom")
    first = await comfy.prompt(slow(1))
    assert (await comfy.entry(first))["status"]["status_str"] == "success"
    assert await posts(lab, *simulators) == [1, 1, 1]
    for simulator in simulators[:2]:
        await simulator.no_faults(lab.http)
    await comfy.entry(await comfy.prompt(slow(2)))
    assert await posts(lab, *simulators) == [1, 1, 2]
    # Another signature goes where it would.
    await comfy.entry(await comfy.prompt(slow(3, steps=4)))
    assert sum(await posts(lab, *simulators[:2])) == 3
    (known,) = (await comfy.get("/gateway/routing"))["out_of_memory"]
    assert (known["backend"], known["vram_gib"], known["times"]) == ("b2", 16.0, 2)

    await gateway.stop()
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    async with lab.held(*simulators):
        busy = [await comfy.prompt(slow(n, steps=30, step_seconds=0.01)) for n in range(3)]
        alike = await comfy.prompt(slow(4))
    for prompt_id in (*busy, alike):
        await comfy.entry(prompt_id)
    lines = [line for line in gateway.log_lines() if line.get("prompt_id") == alike and line.get("backend")]
    assert {line["backend"] for line in lines} == {"b3"}, "it waits behind another one, after a restart, too"

    # While no larger one is up, it goes where it can.
    await simulators[2].kill()
    await lab.backends_up(gateway, 2)

    assert (await comfy.entry(await comfy.prompt(slow(5))))["status"]["status_str"] == "success"
    async with lab.http.delete(f"{gateway.url}/gateway/routing/out_of_memory?signature={known['signature']}") as answer:
        assert (answer.status, await answer.json()) == (200, {"forgotten": known["signature"]})
    async with lab.http.delete(f"{gateway.url}/gateway/routing/out_of_memory?signature=x") as answer:
        assert answer.status == 404
    assert (await comfy.get("/gateway/routing"))["out_of_memory"] == []
    await gateway.kill()
    gateway = await lab.gateway(*simulators, up=2)
    assert (await Comfy(lab.http, gateway.url).get("/gateway/routing"))["out_of_memory"] == []


async def test_different_seeds_spread_over_the_fleet(lab: Lab) -> None:
    """Prompts that differ in their seeds alone: each backend runs its part, by either policy."""
    simulators = await lab.simulators(3)
    tenants = {"named": {"anna": {"routing": "shortest_queue"}, "ben": {"routing": "least_work"}}}
    gateway = await serve(lab, write_config(lab, simulators, tenants, {}), 3)
    ran = [0, 0, 0]
    for name in ("anna", "ben"):
        comfy = caller(lab, gateway, name)
        async with lab.held(*simulators):
            ids = [await comfy.prompt(slow(seed, steps=5)) for seed in range(9)]
        for prompt_id in ids:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
        before, ran = ran, [len(await history_there(lab, simulator)) for simulator in simulators]
        assert all(now - then >= 2 for then, now in zip(before, ran, strict=True)), (name, ran)
