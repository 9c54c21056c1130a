"""Fleets that misbehave, watched by a real Prometheus: alerts reach Alertmanager, and resolve when all is well."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import yaml
from aiohttp import web

from tests.support import disk
from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.listening import cleaned_up
from tests.support.monitoring_table import signals
from tests.support.prometheus import monitoring
from tests.support.stored import break_bucket, mend_bucket, storage, until_stored
from tests.support.workflows import failing, slow, text_to_image

_SEEDS = itertools.count(1)


@contextlib.asynccontextmanager
async def again_and_again(do: Callable[[], Awaitable[object]], pause: float = 0.1) -> AsyncIterator[None]:
    """Do something meanwhile, with pauses."""

    async def go_on() -> None:
        while True:
            await do()
            await asyncio.sleep(pause)

    task = asyncio.create_task(go_on())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def small() -> dict[str, object]:
    """Return a prompt of one step that no other equals."""
    return slow(next(_SEEDS), steps=1)


async def restarted(lab: Lab, simulator: Simulator) -> Simulator:
    """End a simulator and start one at its port."""
    await simulator.kill()
    return await lab.simulator(port=simulator.port)


async def test_backends_that_fail_each_in_its_way(lab: Lab, tmp_path: Path) -> None:
    """One is dead, one's loop is held, one is poisoned, and in one a job hangs; the fifth does all the work."""
    dead, held, poisoned, silent, _ = simulators = await lab.simulators(5)
    gateway = await lab.gateway(
        *simulators, probe__timeout=0.5, probe__lost_after=1.5, dispatch__stall_after=1, dispatch__work_stealing=False
    )
    comfy = Comfy(lab.http, gateway.url)
    async with monitoring(tmp_path / "prometheus", gateway) as watched:
        await dead.kill()
        await lab.backends_up(gateway, 4)
        await held.fault(lab.http, "block-loop:12")
        await poisoned.fault(lab.http, "poisoned")
        await silent.fault(lab.http, "silent")
        ids = [await comfy.prompt(slow(next(_SEEDS), steps=10)) for _ in range(4)]
        await asyncio.gather(
            watched.fires("ComfyUIBackendDown", backend="b1", severity="warning"),
            watched.fires("ComfyUIBackendDown", backend="b2"),
            watched.fires("ComfyUIBackendPoisoned", backend="b3"),
            watched.fires("ComfyUIJobsStalled", backend="b4"),
        )
        expected = {"ComfyUIBackendDown", "ComfyUIBackendPoisoned", "ComfyUIJobsStalled", "ComfyUIGraphRefused"}
        assert await watched.names() <= expected
        await lab.simulator(port=dead.port)
        await restarted(lab, poisoned)
        await silent.no_faults(lab.http)
        for prompt_id in ids:
            assert (await comfy.entry(prompt_id))["status"]["status_str"] == "success"
        await watched.is_well()


async def test_a_queue_that_nobody_serves(lab: Lab, tmp_path: Path) -> None:
    """All backends are down for more than 30 s: a page at once, and later the long waits."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    async with monitoring(tmp_path / "prometheus", gateway) as watched:
        await comfy.entry(await comfy.prompt(small()))
        await until(lambda: watched.query("comfyui_gateway_job_wait_seconds_count > 0"), what="the first job is known")
        await simulator.kill()
        await lab.backends_up(gateway, 0)
        ids = [await comfy.prompt(small()) for _ in range(6)]
        sent_at = time.monotonic()
        await watched.fires("ComfyUIQueueBacklog", severity="warning")
        await watched.fires("ComfyUIQueueBacklogPersists", severity="page")
        await watched.fires("ComfyUIAllBackendsDown", severity="page")
        await watched.notifies("/page", "firing", "ComfyUIQueueBacklogPersists")
        await watched.notifies("/page", "firing", "ComfyUIAllBackendsDown")
        # The alert is about 30 seconds, which are no duration of a rule, so that no factor divides them.
        await asyncio.sleep(sent_at + 31 - time.monotonic())
        await lab.simulator(port=simulator.port)
        for prompt_id in ids:
            await comfy.entry(prompt_id)
        await watched.fires("ComfyUIJobWaitHigh")
        await watched.is_well()
        await watched.notifies("/page", "resolved", "ComfyUIQueueBacklogPersists")


async def test_jobs_that_fail(lab: Lab, tmp_path: Path) -> None:
    """By their callers' fault, which is no alert; then by their backend's."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)

    async def work() -> None:
        for prompt in (failing(str(next(_SEEDS))), small(), small()):
            await comfy.prompt(prompt)

    async with monitoring(tmp_path / "prometheus", gateway) as watched:
        async with again_and_again(work, 0.2):
            failures = 'increase(comfyui_gateway_job_failures_total{fault="caller"}[5s]) > 10'
            await until(lambda: watched.query(failures), what="callers' faults")
        assert await watched.alerts() == []
        await simulator.fault(lab.http, "full-disk")
        async with again_and_again(lambda: comfy.prompt(small())):
            await watched.fires("ComfyUIErrorRateHigh", severity="warning")
            await watched.fires("ComfyUIErrorRateCritical", severity="page")
            await watched.fires("ComfyUIMostJobsFail", severity="warning")
        await simulator.no_faults(lab.http)
        async with again_and_again(lambda: comfy.prompt(small())):
            await watched.is_well()


def usual_hour(gateway: GatewayProcess, seconds: float) -> str:
    """Return the recorded p95 of the runs before this, for Prometheus. An hour is a minute here."""
    name = "comfyui_gateway:job_run_seconds:p95_1h"
    labels = f'{{job="comfyui-gateway",instance="127.0.0.1:{gateway.port}"}}'
    now = int(time.time())
    lines = [f"{name}{labels} {seconds} {moment}" for moment in range(now - 600, now - 65)]
    return "\n".join([f"# TYPE {name} gauge", *lines, "# EOF", ""])


async def test_jobs_that_run_longer_than_usual(lab: Lab, tmp_path: Path) -> None:
    """They took a second, and take four."""
    simulators = await lab.simulators(3)
    gateway = await lab.gateway(*simulators)
    comfy = Comfy(lab.http, gateway.url)
    history = usual_hour(gateway, 0.95)
    async with monitoring(tmp_path / "prometheus", gateway, history=history) as watched:
        await asyncio.gather(*[comfy.entry(await comfy.prompt(small())) for _ in range(6)])
        await until(lambda: watched.query("comfyui_gateway:job_run_seconds:p95_baseline"), what="a baseline")
        long = [await comfy.prompt(slow(next(_SEEDS), steps=35, step_seconds=0.1)) for _ in range(15)]
        await watched.fires("ComfyUIRunTimeHigh")
        for prompt_id in long:
            await comfy.entry(prompt_id)
        await watched.is_well()


async def test_gpus_that_are_full_or_do_nothing(lab: Lab, tmp_path: Path) -> None:
    """One is full, one runs out of memory, one hangs between two prompts, and the executor of one has ended.

    The host of the first is short of RAM, too.
    """
    options = (("--vram-gb", "1", "--cache-ram"), (), ("--fail", "no-worker"), ())
    simulators = [await lab.simulator(*each) for each in options]
    gateways = []
    for number, simulator in enumerate(simulators):
        gateway = GatewayProcess(tmp_path / f"data{number}", [simulator.url], ("--no-auth",), {"probe__interval": 0.25})
        lab.servers.append(gateway)
        await gateway.start()
        await lab.backends_up(gateway, 1)
        gateways.append(gateway)
    full, short, hanging, ended = (Comfy(lab.http, gateway.url) for gateway in gateways)
    of = [f"127.0.0.1:{gateway.port}" for gateway in gateways]
    async with monitoring(tmp_path / "prometheus", *gateways) as watched:
        await full.entry(await full.prompt(text_to_image(next(_SEEDS))))
        await simulators[0].fault(lab.http, "low-ram")
        await simulators[1].fault(lab.http, "oom-until-free")
        await short.entry(await short.prompt(small()))
        await hanging.prompt(small())
        # A node without inputs ends the executor of a ComfyUI; the gateway would refuse such a prompt.
        behind = Comfy(lab.http, simulators[3].url)
        await behind.prompt({**slow(), "9": {"class_type": "EmptyLatentImage"}})
        await ended.prompt(small())
        await asyncio.gather(
            watched.fires("ComfyUIVramHigh", instance=of[0], backend="b1", device="0", severity="info"),
            watched.fires("ComfyUIVramFull", instance=of[0], backend="b1", device="0", severity="warning"),
            watched.fires("ComfyUIHostRamLow", instance=of[0], backend="b1"),
            watched.fires("ComfyUIVramExhausted", instance=of[1], backend="b1"),
            watched.fires("ComfyUIGpuIdle", instance=of[2], backend="b1"),
            watched.fires("ComfyUINoJobEnds", instance=of[3], backend="b1"),
        )
        await full.post("/free", {"unload_models": True, "free_memory": True})
        for simulator in simulators[:3]:
            await simulator.no_faults(lab.http)
        await restarted(lab, simulators[3])
        await watched.is_well()


@contextlib.asynccontextmanager
async def broken_hook() -> AsyncIterator[str]:
    """Serve a URL that answers 500 to each call."""

    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=500)

    application = web.Application()
    application.router.add_post("/restart", fail)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/restart"
    finally:
        await cleaned_up(runner)


async def test_what_the_gateway_can_not_heal(lab: Lab, tmp_path: Path) -> None:
    """Restarts fail until there were enough, VRAM does not become free, and a graph has poisoned two backends."""
    simulators = [await lab.simulator("--vram-gb", "7") for _ in range(4)]
    poisoned, also_poisoned, leaking, _ = simulators
    async with broken_hook() as url:
        config = lab.directory / "gateway.yaml"
        restart = {"url": url, "after": 60, "backoff": 0.1, "max_per_hour": 2}
        backends = [
            {"url": each.url, "restart": restart} if each is poisoned else {"url": each.url} for each in simulators
        ]
        guard = {"enabled": True, "above": 0.95, "after": 0.3}
        config.write_text(yaml.safe_dump({"backends": backends, "auth": {"disabled": True}, "vram_guard": guard}))
        gateway = GatewayProcess(lab.directory / "data", [], ("--config", str(config)), {"probe__interval": 0.25})
        lab.servers.append(gateway)
        await gateway.start()
        await lab.backends_up(gateway, 4)
        comfy = Comfy(lab.http, gateway.url)
        async with monitoring(tmp_path / "prometheus", gateway) as watched:
            await leaking.fault(lab.http, "leak-vram:6.4")
            await poisoned.fault(lab.http, "poisoned")
            await also_poisoned.fault(lab.http, "poisoned")
            await comfy.entry(await comfy.prompt(small()))
            await asyncio.gather(
                watched.fires("ComfyUIRestartFailed", backend="b1", outcome="failed"),
                watched.fires("ComfyUIRestartLimitReached", backend="b1", severity="page"),
                watched.fires("ComfyUIVramGuardStuck", backend="b3"),
                watched.fires("ComfyUIGraphRefused", severity="info"),
            )
            await leaking.no_faults(lab.http)
            for each in (poisoned, also_poisoned):
                await restarted(lab, each)
            for graph in (await comfy.get("/gateway/poisonous"))["graphs"]:
                async with lab.http.delete(f"{gateway.url}/gateway/poisonous/{graph['id']}") as answer:
                    assert answer.status == 200
            await watched.is_well()


async def test_a_full_disk_and_a_gateway_that_is_gone(lab: Lab, tmp_path: Path) -> None:
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator)
    comfy = Comfy(lab.http, gateway.url)
    async with monitoring(tmp_path / "prometheus", gateway) as watched:
        prompt_id = await comfy.prompt(slow(next(_SEEDS), steps=20))
        await comfy.running(prompt_id)
        with disk.full(gateway.pid, (gateway.data_dir / "gateway.sqlite3-wal").stat().st_size):
            await watched.fires("ComfyUIJournalUnwritable", severity="page")
            await watched.notifies("/page", "firing", "ComfyUIJournalUnwritable")
        await watched.resolves("ComfyUIJournalUnwritable")
        await gateway.kill()
        await watched.fires("ComfyUIGatewayDown", severity="page")
        await lab.gateway(simulator, options=("--no-auth", "--port", str(gateway.port)))
        await watched.is_well()


async def test_a_store_that_is_away(lab: Lab, tmp_path: Path) -> None:
    """What waits for it fills the room on the gateway's disk; then it comes back."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, **storage(lab, max_spool=5000))
    comfy = Comfy(lab.http, gateway.url)
    async with monitoring(tmp_path / "prometheus", gateway) as watched:
        await comfy.entry(await comfy.prompt(small()))
        await until_stored(gateway, 1)
        break_bucket(lab)
        async with again_and_again(lambda: comfy.prompt(small())):
            await watched.fires("ComfyUIStorageFailing", severity="warning")
            await watched.fires("ComfyUIStorageSpoolFull", severity="page")
            await watched.notifies("/page", "firing", "ComfyUIStorageSpoolFull")
        mend_bucket(lab)
        await watched.is_well()


async def test_guessed_keys(lab: Lab, tmp_path: Path) -> None:
    """Prometheus has a key of its own, and reads on from the address that is locked out."""
    gateway = await lab.gateway(await lab.simulator(), options=("--admin-key", "key-of-the-admin"), auth__metrics="key")
    admin = Comfy(lab.http, gateway.url, X_API_Key="key-of-the-admin")
    _, made = await admin.post("/gateway/keys", {"name": "prometheus", "role": "metrics"})

    async def guess() -> None:
        headers = {"X-API-Key": f"guess-{next(_SEEDS)}"}
        async with lab.http.get(f"{gateway.url}/queue", headers=headers) as answer:
            assert answer.status in (401, 429)

    async with monitoring(tmp_path / "prometheus", gateway, key=made["key"]) as watched:
        await until(lambda: watched.query('up{job="comfyui-gateway"} == 1'), what="Prometheus reads with its key")
        async with again_and_again(guess, 0.02):
            await watched.fires("ComfyUIKeyGuessing")
        await watched.is_well()


async def test_the_guides_signals_return_data(lab: Lab, tmp_path: Path) -> None:
    """Each metric of the table in docs/monitoring.md, and the figures that the guide names."""
    simulator = await lab.simulator("--vram-gb", "6.6")
    guard = {"vram_guard__enabled": "true", "vram_guard__after": 0.2}
    gateway = await lab.gateway(simulator, options=("--admin-key", "key-of-the-admin"), auth__metrics="key", **guard)
    comfy = Comfy(lab.http, gateway.url, X_API_Key="key-of-the-admin")
    metrics = {name for signal in signals() for name in signal.metrics}
    expressions = [f'{{__name__=~"comfyui_gateway_{name}(_bucket)?"}}' for name in metrics]
    for name in ("wait", "run", "total"):
        rate = f'rate(comfyui_gateway_job_{name}_seconds_bucket{{model="sd_xl_base_1.0.safetensors"}}[5s])'
        expressions += [f"histogram_quantile({quantile}, {rate}) > 0" for quantile in (0.5, 0.95)]
    expressions += [
        "sum(increase(comfyui_gateway_job_failures_total[5s])) / sum(increase(comfyui_gateway_jobs_total[5s])) > 0.1",
        "rate(comfyui_gateway_backend_busy_seconds_total[2s]) > 0",
    ]

    async def work() -> None:
        await comfy.prompt(text_to_image(next(_SEEDS)))
        await comfy.prompt(failing(str(next(_SEEDS))))

    async with (
        monitoring(tmp_path / "prometheus", gateway, key="key-of-the-admin") as watched,
        again_and_again(work, 0.3),
    ):
        for expression in expressions:
            await until(lambda asked=expression: watched.query(asked), what=expression)
