"""A receiver of webhooks in the test's own loop. It keeps all that comes, and answers as it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.lab import until
from tests.support.listening import cleaned_up

# Settings with which a gateway delivers to this machine.
LOCAL = {"webhooks__allow_http": "true", "webhooks__allow_networks": "127.0.0.0/8"}


@dataclass(frozen=True)
class Received:
    """A request: path with query, headers in lower case, body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The event's id."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        """The event."""
        return json.loads(self.body)

    def is_signed_with(self, secret: str) -> bool:
        """Whether one of its signatures is made with a secret: by the specification, not by the gateway's code."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
        return f"v1,{base64.b64encode(mac).decode()}" in self.headers.get("webhook-signature", "").split()


@dataclass
class WebhookReceiver:
    """The receiver. `status`, `more` headers and `answer` are its answer; it waits while it `holds`."""

    url: str = ""
    status: int = 204
    answer: bytes = b""
    more: dict[str, str] = field(default_factory=dict)
    holds: bool = False
    released: asyncio.Event = field(default_factory=asyncio.Event)
    received: list[Received] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        """Keep a request."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path_qs, headers, await request.read()))
        if self.holds:
            await self.released.wait()
        return web.Response(status=self.status, body=self.answer, headers=self.more)

    async def events(self, count: int, *types: str) -> list[Received]:
        """Wait until so many have come, of these types if any are given."""

        async def look() -> list[Received]:
            found = [each for each in self.received if not types or each.event["type"] in types]
            return found if len(found) >= count else []

        return await until(look, what=f"{count} webhooks {types}")


@asynccontextmanager
async def receiver() -> AsyncIterator[WebhookReceiver]:
    """Serve a receiver."""
    made = WebhookReceiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        made.released.set()
        await cleaned_up(runner)
