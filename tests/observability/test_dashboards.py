"""Every query of the dashboards against a real Prometheus, over a fleet that works, fails, and is healed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import re
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import trustme
import yaml
from aiohttp import web

from tests.support import dashboards
from tests.support.comfy_client import Comfy
from tests.support.dashboards import FALLBACK, Shown
from tests.support.lab import GatewayProcess, Lab, Simulator, until
from tests.support.listening import cleaned_up
from tests.support.monitoring_table import MONITORING
from tests.support.pictures import png
from tests.support.prometheus import FACTOR, LIMIT, SCRAPE_MILLISECONDS, Monitoring, monitoring
from tests.support.stored import bucket_of
from tests.support.uploads import load, upload
from tests.support.webhook_receiver import receiver
from tests.support.workflows import failing, slow, text_to_image

ANNA, BEN, BOSS, PROMETHEUS = (f"key-of-{name}-1234567" for name in ("anna", "ben", "boss", "prometheus"))
MODEL = "sd_xl_base_1.0.safetensors"
_SEEDS = itertools.count(1)
# Metrics that nothing here provokes. Their queries are tried with what they show then: 0, if a gateway answers.
RARE = {
    "http_requests_total": "an answer with 5xx: only with all backends down, or a full disk",
    "connections_refused_total": "more connections than server.max_connections_per_address, 16 at least",
    "events_dropped_total": "a reader that is slow for as long as its buffer has room",
    "backend_sockets_deaf_total": "a second gateway with the same client_id",
    "takeovers_total": "work stealing; who is idle first is not certain here",
    "task_failures_total": "a defect",
    "task_restarts_total": "a defect",
}


class Fleet:
    """A gateway with TLS and keys, and two simulators with small GPUs; a command restarts the second."""

    def __init__(
        self,
        lab: Lab,
        gateway: GatewayProcess,
        simulators: list[Simulator],
        authority: Path,
        trusting: ssl.SSLContext,
    ) -> None:
        self.lab = lab
        self.gateway = gateway
        self.first, self.second = simulators
        self.authority = authority
        self.trusting = trusting

    def caller(self, key: str) -> Comfy:
        """A client with a key."""
        return Comfy(self.lab.http, self.gateway.url, X_API_Key=key)


async def fleet(lab: Lab) -> Fleet:
    """Start it. The lab's client trusts the gateway's authority from now on."""
    simulators = await lab.simulators(2, "--vram-gb", "7")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {name: lab.directory / f"{name}.pem" for name in ("certificate", "key", "authority")}
    files["key"].write_bytes(issued.private_key_pem.bytes())
    files["certificate"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(files["authority"])
    settings = {
        "server": {
            "tls": {"certificate": str(files["certificate"]), "key": str(files["key"])},
            "header_timeout": 1,
        },
        "auth": {
            "metrics": "key",
            "keys": [
                {"name": "anna", "key": ANNA},
                {"name": "ben", "key": BEN},
                {"name": "boss", "key": BOSS, "role": "admin"},
                {"name": "prometheus", "key": PROMETHEUS, "role": "metrics"},
            ],
        },
        "tenants": {
            "default": {"nodes": {"trust": ["gwtest"]}},
            "named": {"ben": {"limits": {"prompts_per_minute": 1}}},
        },
        "backends": [
            {"url": simulators[0].url},
            {"url": simulators[1].url, "restart": {"command": ["true"]}},
        ],
        "probe": {"interval": 0.2},
        "vram_guard": {"enabled": True, "above": 0.9, "after": 0.2},
        "webhooks": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]},
        "storage": {"url": bucket_of(lab).as_uri()},
    }
    config = lab.directory / "gateway.yaml"
    config.write_text(yaml.safe_dump(settings))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    await lab.http.close()
    lab.http = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context), timeout=aiohttp.ClientTimeout(total=60)
    )
    gateway = GatewayProcess(lab.directory / "data", [], ("--config", str(config)), {})
    lab.servers.append(gateway)
    await gateway.start()
    await lab.backends_up(gateway, 2)
    return Fleet(lab, gateway, simulators, files["authority"], context)


async def misbehave(fleet: Fleet) -> None:
    """Do once what the rare panels show."""
    anna, ben, boss = (fleet.caller(key) for key in (ANNA, BEN, BOSS))
    http, url = fleet.lab.http, fleet.gateway.url
    status, said = await upload(anna, png((1, 2, 3)), "red.png")
    assert status == 200
    await anna.entry(await anna.prompt(load(said["name"])))
    assert (await anna.post("/prompt", {"prompt": {"1": {"class_type": "Unknown", "inputs": {}}}}))[0] == 400
    for expected in (200, 429):
        assert (await ben.post("/prompt", {"prompt": slow(next(_SEEDS))}))[0] == expected
    async with http.get(f"{url}/queue", headers={"X-API-Key": "a-wrong-key"}) as answer:
        assert answer.status == 401
    # If a head does not end, the gateway answers 408 and closes.
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.gateway.port, ssl=fleet.trusting)
    writer.write(b"GET / HTTP/1.1\r\n")
    assert b" 408 " in await reader.read()
    writer.close()
    async with http.post(f"{fleet.first.url}/simulator/broadcast", json={"type": "executed", "data": "odd"}) as answer:
        assert answer.status == 200
    # The guard frees a backend that stays full. The models of the jobs alone may be gone before it looks.
    await fleet.first.fault(http, "leak-vram:6.4")

    async def freed() -> bool:
        return any(line["event"] == "backend_vram_freed" for line in fleet.gateway.log_lines())

    await until(freed, what="the guard frees a backend")
    await fleet.first.no_faults(http)
    # Each backend runs out of memory once, and the other one heals it; then one loses its GPU and is restarted.
    await fleet.first.fault(http, "oom-until-free")
    await fleet.second.fault(http, "oom-until-free")
    for _ in range(2):
        await anna.entry(await anna.prompt(slow(next(_SEEDS), steps=1)))
    for simulator in (fleet.first, fleet.second):
        await simulator.no_faults(http)
        await simulator.fault(http, "broken")
    for _ in range(3):
        await anna.entry(await anna.prompt(slow(next(_SEEDS), steps=1)))
    await fleet.first.no_faults(http)
    await fleet.second.no_faults(http)
    await boss.post("/gateway/backends/b1/drain")
    await fleet.second.fault(http, "poisoned")
    poisoning = await anna.prompt(slow(next(_SEEDS), steps=1))

    async def restarted() -> bool:
        described = await boss.get("/gateway/backends")
        return bool(described["backends"][1]["restart"]["outcome"] == "started")

    await until(restarted, what="b2 is restarted")
    await fleet.second.kill()
    revived = await fleet.lab.simulator("--vram-gb", "7", port=fleet.second.port)
    await boss.post("/gateway/backends/b1/resume")
    await anna.entry(poisoning)
    await fleet.lab.backends_up(fleet.gateway, 2)
    # From now on one has prompts and runs none.
    await revived.fault(http, "no-worker")


@contextlib.asynccontextmanager
async def traffic(fleet: Fleet, hook: str) -> AsyncIterator[None]:
    """Jobs that succeed, jobs that fail, a listener, and webhooks, as long as this lasts."""
    anna = fleet.caller(ANNA)
    # With all prompts at once: told one at a time, none would be told behind one that hangs.
    listener = await anna.listen("dashboard", "&events=interleave")

    async def listen() -> None:
        while True:
            await listener.receive(60)

    async def work() -> None:
        while True:
            await anna.prompt(text_to_image(next(_SEEDS)), "dashboard", extra_data={"webhook": {"url": hook}})
            await anna.prompt(failing(str(next(_SEEDS))))
            await asyncio.sleep(0.4)

    tasks = [asyncio.create_task(listen()), asyncio.create_task(work())]
    try:
        yield
        assert not any(task.done() for task in tasks), tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.socket.close()


@contextlib.asynccontextmanager
async def exporter() -> AsyncIterator[int]:
    """Serve what dcgm-exporter tells of a machine with two GPUs, and yield the port."""
    lines = []
    for name, values in {"GPU_UTIL": (97, 3), "FB_USED": (70_000, 600), "FB_FREE": (11_000, 80_400)}.items():
        lines += [f"# HELP DCGM_FI_DEV_{name} A figure of a GPU.", f"# TYPE DCGM_FI_DEV_{name} gauge"]
        for gpu, value in enumerate(values):
            labels = f'gpu="{gpu}",UUID="GPU-{gpu}",device="nvidia{gpu}",modelName="NVIDIA H100",Hostname="gpu-host-1"'
            lines.append(f"DCGM_FI_DEV_{name}{{{labels}}} {value}")

    async def show(_: web.Request) -> web.Response:
        return web.Response(text="\n".join([*lines, ""]))

    application = web.Application()
    application.router.add_get("/metrics", show)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield int(runner.addresses[0][1])
    finally:
        await cleaned_up(runner)


def documented_scrape(port: int) -> dict[str, Any]:
    """The scrape configuration in docs/monitoring.md for an exporter, with that port on this machine."""
    (text,) = re.findall(
        r"^```yaml\n(scrape_configs:\n  - job_name: dcgm\n.*?)^```", MONITORING.read_text(), re.M | re.S
    )
    scrape: dict[str, Any]
    (scrape,) = yaml.safe_load(text)["scrape_configs"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    return scrape


def usual_hour(gateway: GatewayProcess) -> str:
    """What Prometheus recorded of the runs before this; the hour is a minute here."""
    name = "comfyui_gateway:job_run_seconds:p95_1h"
    labels = f'{{job="comfyui-gateway",instance="127.0.0.1:{gateway.port}",model="{MODEL}"}}'
    now = int(time.time())
    lines = [f"{name}{labels} 0.95 {moment}" for moment in range(now - 600, now - 65)]
    return "\n".join([f"# TYPE {name} gauge", *lines, "# EOF", ""])


def expression(shown: Shown, chosen: dict[str, str]) -> str:
    """A query with Grafana's variables in it, and the intervals divided as those of the rules are."""
    interval = max(shown.interval // FACTOR, SCRAPE_MILLISECONDS)
    window = f"{dashboards.rate_interval(interval, SCRAPE_MILLISECONDS)}ms"
    return dashboards.filled(shown.expr, {**chosen, "__rate_interval": window})


def without_fallback(shown: Shown) -> Shown:
    """A query without its zero, unless it is about what nothing here provokes."""
    names = set(re.findall(r"comfyui_gateway_(\w+)", shown.expr.removesuffix(FALLBACK)))
    bare = shown.expr if names & set(RARE) else shown.expr.removesuffix(FALLBACK)
    return replace(shown, expr=bare)


def has_data(shown: Shown, series: list[dict[str, Any]]) -> bool:
    """Return True if there is a number, and a series has all labels that the legend names."""
    labelled = [each for each in series if shown.labels <= set(each["metric"])]
    samples = [sample for each in labelled for sample in each.get("values", [each.get("value")])]
    return any(math.isfinite(float(value)) for _, value in samples)


async def ask(watched: Monitoring, shown: Shown, chosen: dict[str, str], since: float) -> list[dict[str, Any]]:
    """The answer to a query, as the dashboard of somebody who has looked since then asks it."""
    text = expression(shown, chosen)
    return await (watched.query(text) if shown.instant else watched.query_range(text, time.time() - since))


async def test_every_query_returns_data(lab: Lab, tmp_path: Path) -> None:
    watched_fleet = await fleet(lab)
    everything = dict.fromkeys(("instance", "backend", "model"), ".*")
    missing = [without_fallback(shown) for shown in dashboards.queries()]
    began = time.time()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(exporter())
        hook = await stack.enter_async_context(receiver())
        await stack.enter_async_context(traffic(watched_fleet, hook.url))
        watched = await stack.enter_async_context(
            monitoring(
                tmp_path / "prometheus",
                watched_fleet.gateway,
                key=PROMETHEUS,
                history=usual_hour(watched_fleet.gateway),
                authority=str(watched_fleet.authority),
                further=[documented_scrape(port)],
            )
        )
        await misbehave(watched_fleet)

        async def all_return_data() -> bool:
            nonlocal missing
            missing = [shown for shown in missing if not has_data(shown, await ask(watched, shown, everything, began))]
            await asyncio.sleep(0.2)
            return not missing

        try:
            await until(all_return_data, LIMIT, "data")
        except AssertionError as error:
            left = "\n".join(f"{shown.where}: {expression(shown, everything)}" for shown in missing)
            raise AssertionError(left) from error
        chosen = await choices(watched)
        for shown in map(without_fallback, dashboards.queries()):
            assert has_data(shown, await ask(watched, shown, chosen, began)), shown
        for shown in (each for each in dashboards.queries() if each.exemplars):
            found = await watched.exemplars(expression(shown, chosen), time.time() - began)
            assert {label for labels in found for label in labels} == {"prompt_id"}, shown
        for dashboard in dashboards.dashboards().values():
            (alerts,) = [each["expr"] for each in dashboard["annotations"]["list"] if "expr" in each]
            assert await watched.query_range(alerts, time.time() - began)
        # A GPU that does nothing while its backend is busy: a sound query, though no GPU here is that idle.
        (joined,) = re.findall(r"^```promql\n(.*?)^```", MONITORING.read_text(), re.MULTILINE | re.DOTALL)
        assert await watched.query(joined.replace("< 1\n", ">= 0\n").replace("> 0.9", ">= 0"))


async def choices(watched: Monitoring) -> dict[str, str]:
    """Choices of the variables as Prometheus tells them: the gateway, all backends one by one, and one model."""
    chosen: dict[str, str] = {}
    for dashboard in dashboards.dashboards().values():
        for name, variable in dashboards.variables(dashboard).items():
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
                assert match is not None
                values = await watched.label_values(dashboards.filled(match[1], chosen), match[2])
                assert values, name
                chosen[name] = dashboards.escaped([MODEL] if MODEL in values else values)
    return chosen
