"""The yardsticks: a handler that returns fixed bytes, a forwarding proxy, and backends that do next to nothing.

`python -m benchmarks.bare handler FILE`, `… proxy URL`, `… backend`, `… backends COUNT`, `… source`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

# The ports that this process listens on.
ports: list[int] = []
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host"}


def handler(path: str) -> web.Application:
    """Answers every GET with the bytes of a file."""
    body = Path(path).read_bytes()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": "application/json; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


def proxy(target: str) -> web.Application:
    """Passes everything on, streaming both ways, and does nothing else."""
    sessions: list[aiohttp.ClientSession] = []

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        body = await request.read() if request.can_read_body else None
        async with sessions[0].request(
            request.method, target + request.raw_path, headers=headers, data=body, auto_decompress=False
        ) as upstream:
            kept = {k: v for k, v in upstream.headers.items() if k.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=upstream.status, headers=kept)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    async def open_session(_: web.Application) -> None:
        sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**18))

    async def close_session(_: web.Application) -> None:
        await sessions[0].close()

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", forward)
    app.on_startup.append(open_session)
    app.on_cleanup.append(close_session)
    return app


def backend() -> web.Application:
    """Accepts prompts and never runs them."""
    return _comfyui(lambda prompt_id: None)


def backends(count: str) -> web.Application:
    """A fleet of backends that never run what they accept. GET /ports of the first tells the ports of all."""
    app = backend()
    app["ports"] = int(count)
    return app


def source() -> web.Application:
    """Accepts prompts, says that each has started, and on POST /emit sends progress events of all, with their time."""
    prompts: list[str] = []

    def started(prompt_id: str) -> None:
        prompts.append(prompt_id)
        app["send"]("execution_start", {"prompt_id": prompt_id, "timestamp": 0})

    async def emit(request: web.Request) -> web.Response:
        order = await request.json()
        rate, seconds = order["rate"], order["seconds"]
        began = time.monotonic()
        sent = 0
        while (elapsed := time.monotonic() - began) < seconds:
            due = int(elapsed * rate)
            while sent < due:
                data = {
                    "value": 1,
                    "max": 2,
                    "prompt_id": prompts[sent % len(prompts)],
                    "node": "1",
                    "sent": time.time(),
                }
                app["send"]("progress", data)
                sent += 1
            await asyncio.sleep(0.002)
        return web.json_response({"sent": sent})

    app = _comfyui(started)
    app.router.add_post("/emit", emit)
    return app


def _comfyui(accepted: object) -> web.Application:
    sockets: list[web.WebSocketResponse] = []

    writes: set[asyncio.Task[None]] = set()

    def send(type_: str, data: object) -> None:
        text = json.dumps({"type": type_, "data": data})
        for socket in sockets:
            # Written to the transport at once: the peer reads, and the rate is bounded.
            write = asyncio.ensure_future(socket.send_str(text))
            writes.add(write)
            write.add_done_callback(writes.discard)

    async def post_prompt(request: web.Request) -> web.Response:
        prompt_id = (await request.json()).get("prompt_id", "")
        accepted(prompt_id)  # type: ignore[operator]
        return web.json_response({"prompt_id": prompt_id, "number": 0, "node_errors": {}})

    async def socket(request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        sockets.append(response)
        async for _ in response:
            pass
        sockets.remove(response)
        return response

    def fixed(value: object) -> object:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response(value)

        return answer

    app = web.Application(client_max_size=2**30)
    app["send"] = send
    app.router.add_post("/prompt", post_prompt)
    app.router.add_get("/ws", socket)
    app.router.add_get("/queue", fixed({"queue_running": [], "queue_pending": []}))
    app.router.add_get("/object_info", fixed(object_info()))
    app.router.add_get("/system_stats", fixed({"system": {}, "devices": []}))
    app.router.add_get("/ports", fixed(ports))
    app.router.add_get("/{path:.*}", fixed({}))
    return app


def object_info() -> object:
    """The node classes of the simulator, and one checkpoint: to judge a prompt the gateway has to know them."""
    classes = json.loads((Path(__file__).parent.parent / "gateway" / "simulator" / "object_info.json").read_text())
    classes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["sd_xl_base_1.0.safetensors"]
    return classes


async def main(app: web.Application) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    for _ in range(app.get("ports", 1)):
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    ports.extend(address[1] for address in runner.addresses)
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(main(globals()[sys.argv[1]](*sys.argv[2:])))
