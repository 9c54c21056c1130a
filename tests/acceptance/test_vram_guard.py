"""The VRAM guard over simulated GPUs: kept models, a leak, the last backend, and a machine without a GPU."""

from __future__ import annotations

from typing import Any

from tests.support.backend_state import described
from tests.support.comfy_client import Comfy
from tests.support.lab import Lab, Simulator, until
from tests.support.metrics import metric
from tests.support.workflows import slow, text_to_image

GUARD = {"vram_guard__enabled": "true", "vram_guard__above": 0.9, "vram_guard__after": 0.2, "probe__interval": 0.1}


async def frees(lab: Lab, simulator: Simulator) -> int:
    """How often a simulator was asked to free its memory."""
    return (await simulator.requests(lab.http)).get("POST /free", 0)


async def test_a_full_backend_is_freed_and_a_leak_keeps_it_out(lab: Lab) -> None:
    """Its model fills the GPU: freed once it is idle, and used again. A leak is not freed: it stays out."""
    simulators = await lab.simulators(2, "--vram-gb", "7", "--cache-ram")
    gateway = await lab.gateway(*simulators, **GUARD)
    comfy = Comfy(lab.http, gateway.url)
    first, second = simulators
    for simulator in simulators:
        await simulator.fault(lab.http, "silent")
    await comfy.post("/gateway/backends/b2/drain")
    # The model is loaded, and the sampler says nothing more.
    busy = await comfy.prompt(text_to_image())
    await comfy.running(busy)

    async def is_guarded(name: str) -> bool:
        return bool((await described(comfy, name))["vram_guarded"])

    await until(lambda: is_guarded("b1"), what="guarded")
    assert await metric(lab, gateway, 'backend_vram_guarded{backend="b1"}') == 1
    await comfy.post("/gateway/backends/b2/resume")
    # The other one has more to do, and still gets the next one.
    others = [await comfy.prompt(slow(seed=n)) for n in (1, 2)]
    assert (await described(comfy, "b2"))["jobs_queued"] + (await described(comfy, "b2"))["jobs_running"] == 2
    assert await frees(lab, first) == 0
    await second.no_faults(lab.http)
    await first.no_faults(lab.http)
    for prompt_id in (busy, *others):
        assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"

    async def released() -> bool:
        return await frees(lab, first) == 1 and not await is_guarded("b1")

    await until(released, what="freed and released")
    assert await metric(lab, gateway, 'vram_frees_total{backend="b1"}') == 1

    await second.fault(lab.http, "leak-vram:6.4")

    def events(name: str) -> list[dict[str, Any]]:
        return [line for line in gateway.log_lines() if line["event"] == name and line["backend"] == "b2"]

    async def told() -> bool:
        return bool(events("backend_vram_still_full"))

    await until(told, what="still full")
    assert await is_guarded("b2")
    assert await frees(lab, second) == 1
    assert len(events("backend_vram_guarded")) == 1
    # If the other one is not there, work must not wait for it.
    await comfy.post("/gateway/backends/b1/drain")
    assert (await comfy.entry(await comfy.prompt(slow(seed=3))))["status"]["status_str"] == "success"
    assert [line["is_needed"] for line in events("backend_vram_released")] == [True]


async def test_a_machine_without_a_gpu_is_not_guarded(lab: Lab) -> None:
    """It reports its memory as VRAM. That the look came is seen by the other one."""
    cpu = await lab.simulator("--cpu", "--vram-gb", "7", "--fail", "leak-vram:6.4")
    gpu = await lab.simulator("--vram-gb", "7", "--fail", "leak-vram:6.4")
    gateway = await lab.gateway(cpu, gpu, up=1, **GUARD)
    comfy = Comfy(lab.http, gateway.url)

    async def asked() -> bool:
        return await frees(lab, gpu) == 1

    await until(asked, what="the other one is asked to free its memory")
    assert await frees(lab, cpu) == 0
    assert not (await described(comfy, "b1"))["vram_guarded"]
