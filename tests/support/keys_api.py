"""Calls of the admin API of keys, and the audit log."""

from __future__ import annotations

import time
from typing import Any

import aiohttp

from tests.support.lab import GatewayProcess, Lab
from tests.support.uploads import BOSS

CLOSED = {"type": "closed CLOSE", "data": {"code": aiohttp.WSCloseCode.POLICY_VIOLATION}}


Answer = tuple[int, dict[str, Any], dict[str, str]]


async def ask(lab: Lab, gateway: GatewayProcess, method: str, path: str, body: Any = None, key: str = BOSS) -> Answer:
    """Ask the admin API; (status, JSON, headers)."""
    headers = {"X-API-Key": key} if key else {}
    async with lab.http.request(method, f"{gateway.url}/gateway/keys{path}", json=body, headers=headers) as answer:
        return answer.status, await answer.json(), dict(answer.headers)


async def make(lab: Lab, gateway: GatewayProcess, name: str, **more: Any) -> str:
    """Make a key; the secret."""
    status, made, headers = await ask(lab, gateway, "POST", "", {"name": name, **more})
    assert status == 201, made
    assert headers["Cache-Control"] == "no-store"
    return str(made["key"])


async def status_of(lab: Lab, gateway: GatewayProcess, key: str, path: str = "/queue") -> int:
    """What a key gets."""
    async with lab.http.get(gateway.url + path, headers={"X-API-Key": key}) as answer:
        return answer.status


def audit(gateway: GatewayProcess, action: str) -> list[dict[str, Any]]:
    """Lines of the audit log."""
    return [line for line in gateway.log_lines() if line["event"] == "audit" and line["action"] == action]


async def wrong(lab: Lab, gateway: GatewayProcess, count: int, path: str = "/queue") -> list[int]:
    """Guess."""
    return [await status_of(lab, gateway, f"guess-{path}-{n}-{time.monotonic()}", path) for n in range(count)]
