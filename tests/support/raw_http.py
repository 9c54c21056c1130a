"""A proxy between a gateway and a simulated ComfyUI that sees what is sent, and may answer in the ComfyUI's place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.lab import Lab, Simulator
from tests.support.listening import cleaned_up

HOP_BY_HOP = ("host", "content-length", "transfer-encoding", "connection", "date", "server")
_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
Hook = Callable[[web.Request, bytes], Awaitable[web.Response | None]]


def drop(request: web.Request) -> web.Response:
    """Reset the connection of a request: the response is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


class Between:
    """The proxy. `sent` are the bodies of POST /prompt; a `hook` that returns an answer keeps the request to itself.

    `rewrite` makes what is answered to a POST /prompt of what the ComfyUI answered; `rewrite_headers` makes the headers
    of each response. `socket` is the gateway's, the one that was opened last.
    """

    def __init__(self, lab: Lab, simulator: Simulator) -> None:
        self.lab = lab
        self.simulator = simulator
        self.url = ""
        self.sent: list[dict[str, Any]] = []
        self.hook: Hook | None = None
        self.socket: web.WebSocketResponse | None = None
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
        try:
            async with self.lab.http.request(request.method, url, data=body, headers=headers) as answer:
                data = await answer.read()
        except aiohttp.ClientConnectionError:
            # If the ComfyUI drops the connection, so does the proxy.
            return drop(request)
        told = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        if self.rewrite_headers is not None:
            told = self.rewrite_headers(told)
        if is_prompt and answer.status == 200 and self.rewrite is not None:
            data = self.rewrite(data)
        return web.Response(status=answer.status, body=data, headers=told)

    async def _socket(self, request: web.Request, url: str) -> web.StreamResponse:
        below = web.WebSocketResponse()
        await below.prepare(request)
        self.socket = below
        async with self.lab.http.ws_connect(url) as above:
            ways = [asyncio.create_task(_relay(below, above)), asyncio.create_task(_relay(above, below))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        return below

    async def open(self) -> None:
        """Listen, on any port."""
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self.pass_on)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._listen(0)
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port)
        await self._site.start()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Let nobody connect meanwhile and reset all connections, as if the process had ended; its prompts go on."""
        port = self._runner.addresses[0][1]
        await self._site.stop()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        try:
            yield
        finally:
            await self._listen(port)

    async def close(self) -> None:
        """Stop."""
        await cleaned_up(self._runner)


async def _relay(source: _Socket, sink: _Socket) -> None:
    """Pass on what a socket says, until it is closed."""
    async for message in source:
        is_text = message.type is aiohttp.WSMsgType.TEXT
        await (sink.send_str(message.data) if is_text else sink.send_bytes(message.data))


@asynccontextmanager
async def between(lab: Lab, simulator: Simulator) -> AsyncIterator[Between]:
    """Start such a proxy."""
    proxy = Between(lab, simulator)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
