"""Webhooks that a gateway delivers in a second, and how late its event loop is meanwhile.

All is real: jobs run on simulators, and a receiver of its own process takes the deliveries, over plain HTTP and then
over TLS. Each job has three events, so 100 jobs a second make 300 deliveries. Then all of these are replayed, as fast
as it goes.

``python -m benchmarks.webhooks CERTIFICATE`` is the receiver.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import trustme
import yaml
from aiohttp import web

from benchmarks import servers
from benchmarks.prompts import wait_until_up
from benchmarks.stalls import Watch
from benchmarks.table import Row
from tests.support.lab import until
from tests.support.workflows import slow

EVENTS = ["job.queued", "job.started", "job.succeeded"]
JOBS_A_SECOND, BACKENDS = 100, 4
DELIVERIES_A_SECOND = JOBS_A_SECOND * len(EVENTS)
_KEY = "a-key-of-the-benchmark-anna"
_API = "/gateway/api/v1/me/webhooks"
_SETTINGS = {"WEBHOOKS__ALLOW_HTTP": "true", "WEBHOOKS__ALLOW_NETWORKS": "127.0.0.0/8"}


async def run(rounds: int, seconds: float) -> list[Row]:
    """The rows about webhooks; as many jobs of each kind as there are seconds for in a quarter of the rounds."""
    jobs = max(JOBS_A_SECOND, int(rounds * seconds / 4 * JOBS_A_SECOND))
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-webhooks-")))
        config, path = directory / "gateway.yaml", directory / "watch"
        config.write_text(yaml.safe_dump({"auth": {"keys": [{"name": "anna", "key": _KEY, "role": "user"}]}}))
        authority, certificate = trustme.CA(), directory / "receiver.pem"
        authority.cert_pem.write_to_path(directory / "authority.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        receiver = await stack.enter_async_context(
            servers.python("-m", "benchmarks.webhooks", str(certificate), core=servers.LOAD_CORE)
        )
        urls = [
            (
                await stack.enter_async_context(
                    servers.python("-m", "gateway.simulator", "--port", "0", core=servers.LOAD_CORE)
                )
            ).url
            for _ in range(BACKENDS)
        ]
        gateway = await stack.enter_async_context(
            servers.gateway(
                *urls,
                config=config,
                watch=path,
                lateness_alone=True,
                authority=directory / "authority.pem",
                **_SETTINGS,
            )
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(headers={"X-API-Key": _KEY}))
        await wait_until_up(http, gateway.url)
        reader, writer = await asyncio.open_unix_connection(str(path))
        stack.callback(writer.close)
        watch = Watch(reader, writer)
        bench = _Bench(http, gateway.url, receiver.url)
        for scheme, url in (("HTTP", receiver.url), ("TLS", await bench.secure_url())):
            rows += await _measure(bench, watch, scheme, url, jobs)
    return rows


async def _measure(bench: _Bench, watch: Watch, scheme: str, url: str, jobs: int) -> list[Row]:
    """Deliver to one endpoint, and delete it."""
    endpoint = (await bench.post(_API, {"url": url, "events": EVENTS}))["id"]
    await bench.jobs(20)
    await bench.received(20 * len(EVENTS))
    since = time.time()
    await watch.figures()
    await bench.jobs(jobs)
    found = await bench.received(jobs * len(EVENTS))
    more = f", lag p99 {found['lag_p99']:.0f} ms"
    rows = [_row(f"over {scheme} at the pace of the jobs", found, await watch.figures(), more)]
    await watch.figures()
    replayed = (await bench.post(f"{_API}/{endpoint}/replay", {"since": since}))["replayed"]
    found = await bench.received(replayed)
    rows.append(_row(f"over {scheme} replayed as fast as the default limits let it", found, await watch.figures(), ""))
    await bench.delete(f"{_API}/{endpoint}")
    return rows


def _row(how: str, found: dict[str, float], figures: dict[str, float], more: str) -> Row:
    delay = f"loop delay p99 {figures['late_p99']:.1f} ms, max {figures['late']:.1f} ms"
    cpu = figures["cpu"] / figures["seconds"] / 10
    return Row(
        f"webhooks {how}: {found['count']:,} deliveries of {BACKENDS} backends' jobs",
        f"{found['rate']:,.0f}/s{more}; {delay}; {cpu:.0f} % CPU",
        "",
        f"{found['rate'] / DELIVERIES_A_SECOND:.2f} of the pace",
        f"{DELIVERIES_A_SECOND}/s",
    )


class _Bench:
    """The client of a gateway whose deliveries go to a receiver."""

    def __init__(self, http: aiohttp.ClientSession, gateway: str, receiver: str) -> None:
        self._http, self._gateway, self._receiver = http, gateway, receiver

    async def post(self, path: str, body: Any) -> Any:
        async with self._http.post(self._gateway + path, json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def delete(self, path: str) -> None:
        """Delete an endpoint."""
        async with self._http.delete(self._gateway + path) as answer:
            answer.raise_for_status()

    async def secure_url(self) -> str:
        """Return the receiver's URL for TLS."""
        async with self._http.get(self._receiver) as answer:
            return f"https://127.0.0.1:{(await answer.json())['tls_port']}"

    async def jobs(self, count: int) -> None:
        """Send prompts at the pace."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for n in range(count):
                await asyncio.sleep(max(0.0, began + n / JOBS_A_SECOND - time.monotonic()))
                group.create_task(self.post("/prompt", {"prompt": slow(seed=n, steps=1, step_seconds=0.0)}))

    async def received(self, count: int) -> dict[str, float]:
        """Wait until the receiver has so many, and return its figures. The next count begins at 0."""

        async def look(path: str = "") -> dict[str, float]:
            async with self._http.get(f"{self._receiver}/{path}") as answer:
                found: dict[str, float] = await answer.json()
                return found if found["count"] >= count else {}

        await until(look, 60, f"{count} deliveries")
        return await look("clear")


async def _receive(certificate: str) -> None:
    """Serve the receiver. POST is a delivery, GET the figures, and GET /clear forgets the deliveries."""
    # When each event came first, and the beginning of its body.
    came: dict[str, tuple[float, bytes]] = {}

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        came.setdefault(request.headers["webhook-id"], (time.time(), body[:80]))
        return web.Response(status=204)

    async def tell(request: web.Request) -> web.Response:
        figures: dict[str, float] = {"count": len(came), "tls_port": runner.addresses[1][1]}
        if request.path == "/clear" and came:
            times = sorted(at for at, _ in came.values())
            lags = sorted(at - _happened_at(start) for at, start in came.values())
            figures["rate"] = (len(times) - 1) / (times[-1] - times[0])
            figures["lag_p99"] = lags[int(len(lags) * 0.99)] * 1000
            came.clear()
        return web.json_response(figures)

    app = web.Application()
    app.router.add_post("/", take)
    app.router.add_get("/{path:.*}", tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    print(f"receives at http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


def _happened_at(start: bytes) -> float:
    """Return the time in the beginning of an event's body."""
    text = json.loads(start[start.index(b'"timestamp":') + 12 :].split(b",", 1)[0])
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    asyncio.run(_receive(sys.argv[1]))
