"""POST /gateway/run and named workflows, as one caller uses them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.comfy_client import SECRET_FOLDER
from tests.support.lab import GatewayProcess, Lab
from tests.support.v2 import Answer


class Runner:
    """One caller: ``await runner(method, path, …)``."""

    def __init__(self, lab: Lab, gateway: GatewayProcess, key: str = "") -> None:
        self.lab, self.gateway = lab, gateway
        self.headers = {"X-API-Key": key} if key else {}

    def as_other(self, key: str) -> Runner:
        """The caller with another key."""
        return Runner(self.lab, self.gateway, key)

    async def __call__(self, method: str, path: str, **more: Any) -> Answer:
        """Ask for a path, or a link."""
        url = path if path.startswith("http") else f"{self.gateway.url}{path}"
        headers = {**self.headers, **more.pop("headers", {})}
        async with self.lab.http.request(method, url, headers=headers, **more) as response:
            raw = await response.read()
            is_json = response.headers.get("Content-Type", "").startswith("application/json") and raw
            answer = Answer(response.status, response.headers, raw, json.loads(raw) if is_json else None)
        found = SECRET_FOLDER.search(raw) if is_json else None
        assert found is None, (path, found)
        return answer

    async def run(self, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """Run a graph."""
        return await self("POST", "/gateway/run", json=body, headers=headers or {})

    async def open_jobs(self) -> set[str]:
        """The ids of the caller's open jobs."""
        queue = (await self("GET", "/queue")).body
        return {item[1] for item in queue["queue_running"] + queue["queue_pending"]}

    async def new_jobs(self, before: set[str]) -> set[str]:
        """The ids of the open jobs that were not there before."""
        return await self.open_jobs() - before

    async def is_over(self, prompt_id: str) -> bool:
        """Whether a job has ended."""
        return prompt_id not in await self.open_jobs()

    async def was_given_up(self, prompt_id: str) -> bool:
        """Whether the gateway has noted that the client which waited for a job is gone."""
        lines = self.gateway.log_lines()
        return any(line.get("prompt_id") == prompt_id and line.get("status") == 499 for line in lines)
