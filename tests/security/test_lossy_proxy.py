"""A proxy before a ComfyUI that leaves out, or weakens, what files are known by: everybody still sees their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from gateway.simulator.nodes import seed_colour
from tests.acceptance.test_guide_clients import colour
from tests.lab import Lab, Simulator
from tests.security.test_copies import made
from tests.security.test_named_files import sees, telling
from tests.security.world import caller, start
from tests.workflows import slow

HOP_BY_HOP = ("host", "content-length", "transfer-encoding", "connection", "date", "server")
MINE = 0x112233


@asynccontextmanager
async def proxy(lab: Lab, simulator: Simulator, lost: tuple[str, ...], *, weak: bool) -> AsyncIterator[str]:
    """One that leaves out these headers."""

    async def pass_on(request: web.Request) -> web.StreamResponse:
        url = simulator.url + request.raw_path
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await socket(request, url)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        async with lab.http.request(request.method, url, data=request.content, headers=headers) as answer:
            told = {k: v for k, v in answer.headers.items() if k.lower() not in (*HOP_BY_HOP, *lost)}
            told = {k: f"W/{v}" if weak and k.lower() == "etag" else v for k, v in told.items()}
            return web.Response(status=answer.status, body=await answer.read(), headers=told)

    async def socket(request: web.Request, url: str) -> web.StreamResponse:
        below = web.WebSocketResponse()
        await below.prepare(request)
        async with lab.http.ws_connect(url) as above:

            async def up() -> None:
                async for message in below:
                    await above.send_str(message.data)

            sending = asyncio.create_task(up())
            async for message in above:
                is_text = message.type is aiohttp.WSMsgType.TEXT
                await (below.send_str(message.data) if is_text else below.send_bytes(message.data))
            sending.cancel()
        return below

    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("lost", "weak"), [(("etag", "last-modified"), False), (("last-modified",), False), (("etag",), False), ((), True)]
)
async def test_ones_own_files_are_shown(lab: Lab, lost: tuple[str, ...], weak: bool) -> None:
    """As soon as a node has written one, and after the job."""
    async with proxy(lab, await lab.simulator(), lost, weak=weak) as url:
        gateway = await start(lab, url)
        anna = caller(lab, gateway, "anna")
        image = await made(anna, slow(MINE))
        assert colour(await anna.view(image)) == seed_colour(MINE)
        listener = await anna.listen("c")
        prompt = {**telling({}, goes_on=True), "3": {"class_type": "EmptyImage", "inputs": {}}}
        prompt["3"]["inputs"] = {"width": 8, "height": 8, "batch_size": 1, "color": MINE}
        prompt["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "first"}}
        ordered = {node_id: prompt[node_id] for node_id in ("3", "4", "1", "2")}
        runs = await anna.prompt(ordered, "c")
        (image,) = (await listener.next("executed"))["data"]["output"]["images"]
        for _ in range(2):
            assert await sees(anna, image["filename"])
            await anna.post("/interrupt", {"prompt_id": runs})
            await anna.entry(runs)
        await gateway.stop()
