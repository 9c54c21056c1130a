"""Debian's Prometheus and Alertmanager, with the shipped rules and configurations, minutes made seconds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.support.lab import GatewayProcess, until
from tests.support.listening import cleaned_up
from tests.support.scaled_rules import scaled

SHIPPED = Path(__file__).parents[2] / "config" / "prometheus"
FACTOR = 60
SCRAPE_MILLISECONDS = 500
LIMIT = 40.0


class Monitoring:
    """A running Prometheus that scrapes gateways, and its Alertmanager.

    `received` are the notifications that Alertmanager has sent, each as receiver, status and name of the alert.
    """

    def __init__(self, http: aiohttp.ClientSession, prometheus: int, alertmanager: int) -> None:
        self.received: list[tuple[str, str, str]] = []
        self._http = http
        self._prometheus = f"http://127.0.0.1:{prometheus}"
        self._alertmanager = f"http://127.0.0.1:{alertmanager}"

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now, each with its labels under ``metric``."""
        async with self._http.get(f"{self._prometheus}/api/v1/query", params={"query": expression}) as answer:
            said = await answer.json()
        assert said["status"] == "success", (expression, said)
        found: list[dict[str, Any]] = said["data"]["result"]
        return found

    async def query_range(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """The series that an expression returned in the last seconds, each with its samples under ``values``."""
        end = time.time()
        asked = {"query": expression, "start": end - seconds, "end": end, "step": SCRAPE_MILLISECONDS / 1000}
        async with self._http.post(f"{self._prometheus}/api/v1/query_range", data=asked) as answer:
            said = await answer.json()
        assert said["status"] == "success", (expression, said)
        found: list[dict[str, Any]] = said["data"]["result"]
        return found

    async def exemplars(self, expression: str, seconds: float) -> list[dict[str, str]]:
        """The labels of the exemplars of the last seconds, of all series that an expression names."""
        end = time.time()
        asked = {"query": expression, "start": end - seconds, "end": end}
        async with self._http.post(f"{self._prometheus}/api/v1/query_exemplars", data=asked) as answer:
            said = await answer.json()
        assert said["status"] == "success", (expression, said)
        return [exemplar["labels"] for series in said["data"] for exemplar in series["exemplars"]]

    async def label_values(self, selector: str, label: str) -> list[str]:
        """The values of a label of series."""
        url = f"{self._prometheus}/api/v1/label/{label}/values"
        async with self._http.get(url, params={"match[]": selector}) as answer:
            said = await answer.json()
        assert said["status"] == "success", (selector, said)
        found: list[str] = said["data"]
        return found

    async def alerts(self) -> list[dict[str, str]]:
        """Return the labels of the alerts that Alertmanager has now."""
        async with self._http.get(f"{self._alertmanager}/api/v2/alerts") as answer:
            return [alert["labels"] for alert in await answer.json()]

    async def names(self) -> set[str]:
        """Return the names of these alerts."""
        return {labels["alertname"] for labels in await self.alerts()}

    async def _has(self, alert: str, labels: dict[str, str]) -> bool:
        wanted = {"alertname": alert, **labels}.items()
        return any(wanted <= found.items() for found in await self.alerts())

    async def fires(self, alert: str, limit: float = LIMIT, **labels: str) -> None:
        """Wait until Alertmanager has an alert."""
        try:
            await until(lambda: self._has(alert, labels), limit, f"{alert} {labels} fires")
        except AssertionError as error:
            raise AssertionError(f"{error}; there are {await self.alerts()}") from error

    async def resolves(self, alert: str, limit: float = LIMIT, **labels: str) -> None:
        """Wait until Alertmanager has it no more."""

        async def is_over() -> bool:
            return not await self._has(alert, labels)

        await until(is_over, limit, f"{alert} {labels} resolves")

    async def is_well(self, limit: float = LIMIT) -> None:
        """Wait until there is no alert."""

        async def look() -> bool:
            return not await self.alerts()

        try:
            await until(look, limit, "no alert")
        except AssertionError as error:
            raise AssertionError(f"{error}; there are {await self.alerts()}") from error

    async def notifies(self, receiver: str, status: str, alert: str) -> None:
        """Wait until Alertmanager has told a receiver."""

        async def look() -> bool:
            return (receiver, status, alert) in self.received

        await until(look, LIMIT, f"{receiver} hears that {alert} is {status}: {self.received}")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses."""
    # All are open at once, so that no two are the same.
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _write_prometheus(
    root: Path,
    gateways: Sequence[GatewayProcess],
    alertmanager: int,
    key: str,
    authority: str,
    further: Sequence[dict[str, Any]],
) -> Path:
    (root / "alerts.yml").write_text(scaled((SHIPPED / "alerts.yml").read_text(), FACTOR, SCRAPE_MILLISECONDS))
    (root / "comfyui-gateway.key").write_text(key)
    configuration = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    interval = f"{SCRAPE_MILLISECONDS}ms"
    configuration["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), interval)
    (managers,) = configuration["alerting"]["alertmanagers"]
    managers["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
    (scrape,) = configuration["scrape_configs"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{gateway.port}" for gateway in gateways]}]
    if not key:
        del scrape["authorization"]
    if authority:
        scrape |= {"scheme": "https", "tls_config": {"ca_file": authority}}
    configuration["scrape_configs"] += further
    path = root / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path


def _write_alertmanager(root: Path, receiver: int) -> Path:
    configuration = yaml.safe_load((SHIPPED / "alertmanager.yml").read_text())
    for route in (configuration["route"], *configuration["route"]["routes"]):
        route |= {"group_wait": "10ms", "group_interval": "200ms"}
    text = yaml.safe_dump(configuration).replace("127.0.0.1:9099", f"127.0.0.1:{receiver}")
    path = root / "alertmanager.yml"
    path.write_text(text)
    return path


@contextlib.asynccontextmanager
async def monitoring(
    root: Path,
    *gateways: GatewayProcess,
    key: str = "",
    history: str = "",
    authority: str = "",
    further: Sequence[dict[str, Any]] = (),
) -> AsyncIterator[Monitoring]:
    """Run Prometheus and Alertmanager over gateways.

    Args:
        root: a folder of its own.
        gateways: the targets.
        key: of the role metrics, if they want one.
        history: OpenMetrics text of samples that Prometheus has from before.
        authority: file with the certificate of an authority, if the gateways speak TLS.
        further: scrape configurations of other targets.
    """
    await asyncio.to_thread(root.mkdir)
    prometheus, alertmanager = free_ports(2)
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))
        watched = Monitoring(http, prometheus, alertmanager)
        receiver = await stack.enter_async_context(_receiver(watched))
        configurations = (
            _write_alertmanager(root, receiver),
            _write_prometheus(root, gateways, alertmanager, key, authority, further),
        )
        data = root / "data"
        if history:
            await _backfill(root, data, history)
        commands = {
            alertmanager: (
                "prometheus-alertmanager",
                f"--config.file={configurations[0]}",
                f"--storage.path={root / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{alertmanager}",
                "--cluster.listen-address=",
            ),
            prometheus: (
                "prometheus",
                f"--config.file={configurations[1]}",
                f"--storage.tsdb.path={data}",
                f"--web.listen-address=127.0.0.1:{prometheus}",
                "--rules.alert.resend-delay=1s",
                "--enable-feature=exemplar-storage",
            ),
        }
        for port, command in commands.items():
            await stack.enter_async_context(_process(command, port, root / f"{command[0]}.log", http))
        yield watched


async def _backfill(root: Path, data: Path, history: str) -> None:
    text = root / "history.txt"
    text.write_text(history)
    command = ("promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(data))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


@contextlib.asynccontextmanager
async def _receiver(watched: Monitoring) -> AsyncIterator[int]:
    async def take(request: web.Request) -> web.Response:
        for alert in (await request.json())["alerts"]:
            watched.received.append((request.path, alert["status"], alert["labels"]["alertname"]))
        return web.Response()

    application = web.Application()
    application.router.add_post("/{receiver}", take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await cleaned_up(runner)


@contextlib.asynccontextmanager
async def _process(command: tuple[str, ...], port: int, log: Path, http: aiohttp.ClientSession) -> AsyncIterator[None]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)

    async def is_ready() -> bool:
        assert process.returncode is None, await asyncio.to_thread(log.read_text)
        try:
            async with http.get(f"http://127.0.0.1:{port}/-/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    try:
        await until(is_ready, what=f"{command[0]} is ready")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
