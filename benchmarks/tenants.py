"""What keys and limits cost: GET /history/{id} with 10,000 keys and every limit on, against a gateway with none."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks import servers
from benchmarks.table import Row, in_turns, ratio
from tests.support.comfy_client import Comfy
from tests.support.workflows import slow

KEYS = 10_000
# High enough never to be reached: what is measured is the counting.
LIMITS: dict[str, Any] = {
    "requests_per_second": 1_000_000,
    "prompts_per_minute": 1_000_000,
    "jobs_waiting": 1_000_000,
    "jobs_running": 1_000_000,
    "body_bytes": 10_000_000,
    "upload_bytes": 1_000_000_000,
    "sockets": 1_000_000,
}


def _key(number: int) -> str:
    return f"a-key-of-the-benchmark-{number:06d}"


def _config(backend: str) -> str:
    keys = [{"name": f"tenant-{n}", "key": _key(n)} for n in range(KEYS)]
    tenants = {
        "default": {"limits": LIMITS, "nodes": {"trust": ["gwtest"]}},
        "named": {"tenant-7": {"limits": {"sockets": 100}}},
    }
    return yaml.safe_dump({"backends": [{"url": backend}], "auth": {"keys": keys}, "tenants": tenants})


async def _rate_of(comfy: Comfy, seconds: float) -> Callable[[], Awaitable[float]]:
    """Runs a prompt; what is returned measures how often its history entry can be read in a second."""
    prompt_id = await comfy.prompt(slow(1, steps=1, step_seconds=0.0))
    await comfy.entry(prompt_id)
    headers = "".join(f"wrk.headers['{name}']='{value}'\n" for name, value in comfy.headers.items())

    async def rate() -> float:
        return (await servers.wrk(f"{comfy.url}/history/{prompt_id}", seconds, script=headers))["rate"]

    return rate


async def run(rounds: int, seconds: float) -> list[Row]:
    """The row about keys and limits."""
    with tempfile.TemporaryDirectory(prefix="bench-keys-") as directory:
        config = Path(directory) / "gateway.yaml"
        async with (
            servers.python("-m", "gateway.simulator", "--port", "0", core=servers.LOAD_CORE) as simulator,
            servers.gateway(simulator.url) as free,
            aiohttp.ClientSession() as http,
        ):
            config.write_text(_config(simulator.url))
            async with servers.gateway(config=config) as limited:
                known, stranger = Comfy(http, limited.url, X_API_Key=_key(KEYS // 2)), Comfy(http, free.url)
                mine, other, ratios = await in_turns(
                    rounds, await _rate_of(known, seconds), await _rate_of(stranger, seconds)
                )
    what = f"GET /history/{{id}}, {KEYS:,} keys, all limits on"
    return [Row(what, f"{mine:,.0f}/s", f"no keys, no limits {other:,.0f}/s", ratio(ratios), "0.9")]
