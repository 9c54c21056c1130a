"""The API of webhooks, as one caller uses it."""

from __future__ import annotations

from typing import Any

from tests.support.lab import GatewayProcess, Lab, until

PATH = "/gateway/api/v1/me/webhooks"


class Api:
    """The API as one caller."""

    def __init__(self, lab: Lab, gateway: GatewayProcess, key: str) -> None:
        self.lab, self.gateway, self.key = lab, gateway, key

    async def __call__(self, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
        """Ask; (status, JSON)."""
        headers = {"X-API-Key": self.key}
        url = f"{self.gateway.url}{PATH}{path}"
        async with self.lab.http.request(method, url, json=body, headers=headers) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            return answer.status, await answer.json()

    async def make(self, url: str, **more: Any) -> tuple[str, str]:
        """Make an endpoint; its id and its secret."""
        status, made = await self("POST", "", {"url": url, **more})
        assert status == 201, made
        return made["id"], made["secret"]

    async def prompt(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Send a prompt."""
        headers = {"X-API-Key": self.key}
        async with self.lab.http.post(f"{self.gateway.url}/prompt", json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def deliveries(self, path: str = "/deliveries", **wanted: str) -> list[dict[str, Any]]:
        """Wait until there are deliveries like this, and return all of them."""

        async def look() -> list[dict[str, Any]]:
            listed = (await self("GET", path))[1]["deliveries"]
            found = [each for each in listed if all(each[name] == value for name, value in wanted.items())]
            return listed if found else []

        return await until(look)
