"""A proxy between a gateway and a simulated ComfyUI that sees what is sent, and may answer in the ComfyUI's place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from tests.lab import Lab, Simulator

HOP_BY_HOP = ("host", "content-length", "transfer-encoding", "connection", "date", "server")
Hook = Callable[[web.Request, bytes], Awaitable[web.Response | None]]


class Between:
    """The proxy. `sent` are the bodies of POST /prompt; a `hook` that returns an answer keeps the request to itself.

    `rewrite` makes what is answered to a POST /prompt of what the ComfyUI answered; `rewrite_headers` makes the headers
    of each response.
    """

    def __init__(self, lab: Lab, simulator: Simulator) -> None:
        self.lab = lab
        self.simulator = simulator
        self.url = ""
        self.sent: list[dict[str, Any]] = []
        self.hook: Hook | None = None
        self.rewrite: Callable[[bytes], bytes] | None = None
        self.rewrite_headers: Callable[[dict[str, str]], dict[str, str]] | None = None

    @property
    def ids(self) -> list[str]:
        """The ids that were sent, in order."""
        return [body["prompt_id"] for body in self.sent]

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        url = self.simulator.url + request.raw_path
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request, url)
        body = await request.read()
        is_prompt = (request.method, request.path) == ("POST", "/prompt")
        if is_prompt:
            self.sent.append(json.loads(body))
        own = await self.hook(request, body) if self.hook is not None else None
        if own is not None:
            return own
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        async with self.lab.http.request(request.method, url, data=body, headers=headers) as answer:
            told = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            if self.rewrite_headers is not None:
                told = self.rewrite_headers(told)
            data = await answer.read()
            if is_prompt and answer.status == 200 and self.rewrite is not None:
                data = self.rewrite(data)
            return web.Response(status=answer.status, body=data, headers=told)

    async def _socket(self, request: web.Request, url: str) -> web.StreamResponse:
        below = web.WebSocketResponse()
        await below.prepare(request)
        async with self.lab.http.ws_connect(url) as above:

            async def up() -> None:
                async for message in below:
                    await above.send_str(message.data)

            sending = asyncio.create_task(up())
            async for message in above:
                is_text = message.type is aiohttp.WSMsgType.TEXT
                await (below.send_str(message.data) if is_text else below.send_bytes(message.data))
            sending.cancel()
        return below


@asynccontextmanager
async def between(lab: Lab, simulator: Simulator) -> AsyncIterator[Between]:
    """Start such a proxy."""
    proxy = Between(lab, simulator)
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", proxy.pass_on)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield proxy
    finally:
        await runner.cleanup()
