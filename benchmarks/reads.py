"""GET /queue and GET /history/{id}: against a handler with the same bytes, and against nginx and a busy ComfyUI."""

from __future__ import annotations

import asyncio
import tempfile

import aiohttp

from benchmarks import servers
from benchmarks.table import Row, in_turns, ratio
from tests.support.lab import until
from tests.support.workflows import slow, text_to_image

PENDING = (1, 100)


async def run(rounds: int, seconds: float) -> list[Row]:
    """Both rows of each read."""
    rows: list[Row] = []
    async with (
        servers.python("-m", "gateway.simulator", "--port", "0", core=servers.LOAD_CORE) as simulator,
        servers.gateway(simulator.url) as gateway,
        aiohttp.ClientSession() as http,
    ):
        prompt_id = await _fill(http, gateway.url)
        before = await _asked(http, simulator.url)
        for path in ("/queue", f"/history/{prompt_id}"):
            rows.append(await _against_handler(http, gateway, path, rounds, seconds))
        asked = await _asked(http, simulator.url) - before
        rows.append(Row("requests that reached a backend meanwhile", str(asked), "", "", "0"))
        for pending in PENDING:
            rows.append(await _against_busy(gateway, pending, rounds, seconds))
    return rows


async def _fill(http: aiohttp.ClientSession, url: str) -> str:
    """Some history, one running job, a few pending. Returns the id of an ended one."""
    ended = [await _post(http, url, slow(n, steps=1, step_seconds=0.0)) for n in range(20)]
    for prompt_id in ended:
        await until(lambda prompt_id=prompt_id: _json(http, f"{url}/history/{prompt_id}"))
    for n in range(4):
        await _post(http, url, slow(n, steps=1000, step_seconds=100))
    await asyncio.sleep(1)
    return ended[0]


async def _post(http: aiohttp.ClientSession, url: str, prompt: object) -> str:
    async with http.post(f"{url}/prompt", json={"prompt": prompt}) as answer:
        return str((await answer.json())["prompt_id"])


async def _json(http: aiohttp.ClientSession, url: str) -> dict[str, object]:
    async with http.get(url) as answer:
        found: dict[str, object] = await answer.json()
        return found


async def _asked(http: aiohttp.ClientSession, simulator: str) -> int:
    return sum(int(str(count)) for count in (await _json(http, f"{simulator}/simulator/requests")).values())


async def _against_handler(
    http: aiohttp.ClientSession, gateway: servers.Running, path: str, rounds: int, seconds: float
) -> Row:
    async with http.get(gateway.url + path) as answer:
        body = await answer.read()
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        async with servers.python("-m", "benchmarks.bare", "handler", file.name) as bare:

            async def rate(url: str) -> float:
                return (await servers.wrk(url + path, seconds))["rate"]

            mine, other, ratios = await in_turns(rounds, lambda: rate(gateway.url), lambda: rate(bare.url))
    name = "/history/{id}" if path.startswith("/history") else path
    return Row(
        f"GET {name}, {len(body)} bytes", f"{mine:,.0f}/s", f"bare aiohttp handler {other:,.0f}/s", ratio(ratios), "0.6"
    )


async def _against_busy(gateway: servers.Running, pending: int, rounds: int, seconds: float) -> Row:
    async with (
        servers.python(
            "-m", "gateway.simulator", "--port", "0", "--hold-loop", "0.9", core=servers.LOAD_CORE
        ) as simulator,
        servers.nginx(simulator.url) as nginx,
        aiohttp.ClientSession() as http,
    ):
        # The same queue for both: one job that runs, and a batch that waits behind it.
        for url in (simulator.url, gateway.url):
            async with http.post(f"{url}/queue", json={"clear": True}) as answer:
                answer.raise_for_status()
            for _ in range(pending):
                await _post(http, url, {**text_to_image(), **slow(1, steps=1000, step_seconds=100)})
        await asyncio.sleep(1)

        async def rate(url: str) -> float:
            return (await servers.wrk(f"{url}/queue", seconds))["rate"]

        mine, other, ratios = await in_turns(rounds, lambda: rate(gateway.url), lambda: rate(nginx.url))
    busy = "nginx, ComfyUI's loop held 90 %"
    return Row(
        f"GET /queue while a job runs, {pending} pending",
        f"{mine:,.0f}/s",
        f"{busy} {other:,.0f}/s",
        ratio(ratios),
        "50",
    )
