"""A backend that takes prompts and says the worst of them that is still JSON: ``python -m benchmarks.hostile KIND``."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvloop
from aiohttp import web

from benchmarks.bare import main, object_info
from benchmarks.catalogues import catalogue

MIB = 2**20
# The values and bytes that the gateway takes of one result, and a little less.
VALUES, LONG = 41_000, 6 * MIB - 4_096
GOOD_ANSWERS = 2
# Small messages in a row.
FLOOD = 100_000
ERROR = {
    "node_id": "1",
    "node_type": "EmptyImage",
    "exception_message": "/a/a.png " * (LONG // 18),
    "exception_type": "E",
    "traceback": [],
    "current_inputs": {"text": ["/a/" * 1_000] * (LONG // 6_000)},
}


def outputs(kind: str) -> Any:
    """The outputs of a prompt whose result is as large as may be."""
    match kind:
        case "values":
            return {"1": {"a": [[]] * VALUES}}
        case "files":
            return {
                "1": {"images": [{"filename": f"{n}.png", "subfolder": "", "type": "output"} for n in range(8_000)]}
            }
        case "nan":
            return {"1": {"text": ["x" * LONG, float("nan")]}}
        case "names":
            return {"1": {"3d": [f"{n}.glb" for n in range(VALUES)]}}
        case "text":
            return {"1": {"text": ["o/" * (LONG // 2)]}}
        case "folder":
            return {"1": {"text": ["o/" * (LONG // 2 - 50) + "o/" + "0f" * 16]}}
        case _:
            return {}


class Hostile:
    """The backend. `kind` is what is bad about it: ``catalogue-MEGABYTES`` describes itself at length."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._told = outputs(kind)
        described = kind.split("-")
        versions = 1 if "once" in described else 2
        catalogues = [catalogue(int(described[1]), version) for version in range(versions)] if described[1:] else []
        self._catalogues = itertools.cycle(catalogues or [json.dumps(object_info()).encode()])
        self._sockets: list[web.WebSocketResponse] = []
        self._ended: dict[str, bytes] = {}
        self._asked = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/prompt", self.post_prompt)
        app.router.add_get("/ws", self.socket)
        app.router.add_get("/queue", self.queue)
        app.router.add_get("/history/{id}", self.history)
        app.router.add_get("/object_info", self.object_info)
        app.router.add_get("/system_stats", _fixed({"system": {}, "devices": []}))
        app.router.add_get("/{path:.*}", _fixed({}))
        return app

    async def _say(self, type_: str, data: dict[str, Any]) -> None:
        await self._send(json.dumps({"type": type_, "data": data}))

    async def _send(self, text: str) -> None:
        for socket in list(self._sockets):
            try:
                await socket.send_str(text)
            except ConnectionError:
                # The gateway has closed it.
                pass

    async def _run(self, prompt_id: str) -> None:
        await asyncio.sleep(0.05)
        await self._say("execution_start", {"prompt_id": prompt_id, "timestamp": 1})
        if self._kind == "frame":
            await self._send("x" * (60 * MIB))
        if self._kind == "types":
            for n in range(FLOOD):
                await self._say(f"type-{n}", {"prompt_id": prompt_id})
        told = outputs("values") if self._kind == "events" else self._told
        for _ in range(20 if self._kind == "events" else len(told)):
            await self._say("executed", {"prompt_id": prompt_id, "node": "1", "output": told["1"]})
        status: dict[str, Any] = {"status_str": "success", "completed": True, "messages": []}
        if self._kind == "error":
            status = {"status_str": "error", "completed": False, "messages": [["execution_error", ERROR]]}
        entry = {"prompt": [1, prompt_id, {}, {}, []], "outputs": self._told, "status": status, "meta": {}}
        self._ended[prompt_id] = json.dumps({prompt_id: entry}).encode()
        if self._kind == "error":
            await self._say("execution_error", {**ERROR, "prompt_id": prompt_id})
        await self._say("executing", {"prompt_id": prompt_id, "node": None})

    async def post_prompt(self, request: web.Request) -> web.Response:
        """Take a prompt."""
        prompt_id = (await request.json())["prompt_id"]
        task = asyncio.ensure_future(self._run(prompt_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response({"prompt_id": prompt_id, "number": 0, "node_errors": {}})

    async def history(self, request: web.Request) -> web.Response:
        """Tell a prompt's entry."""
        prompt_id = request.match_info["id"]
        body = _endless(prompt_id) if self._kind == "entry" else self._ended.get(prompt_id, b"{}")
        return web.Response(body=body, content_type="application/json")

    async def object_info(self, _: web.Request) -> web.Response:
        """Describe the node classes, each time in other words if there are others."""
        return web.Response(body=next(self._catalogues), content_type="application/json")

    async def queue(self, _: web.Request) -> web.Response:
        """Tell the queue. The first answers are good, because else the gateway has no use for the backend."""
        self._asked += 1
        if self._kind != "packed" or self._asked <= GOOD_ANSWERS:
            return web.json_response({"queue_running": [], "queue_pending": []})
        return web.Response(body=_bomb(), headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """Keep the gateway's socket."""
        response = web.WebSocketResponse()
        await response.prepare(request)
        self._sockets.append(response)
        async for _ in response:
            pass
        self._sockets.remove(response)
        return response


def _fixed(value: object) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(value)

    return answer


async def _endless(prompt_id: str) -> AsyncIterator[bytes]:
    """An entry of 400 MB."""
    yield b'{"%b": {"prompt": [1, "x", {}, {}, []], "outputs": {"2": {"text": ["' % prompt_id.encode()
    for _ in range(400):
        yield b"x" * 1_000_000


def _bomb() -> bytes:
    """927 KB that unpack to nearly a gigabyte."""
    return gzip.compress(b'{"queue_running": [' + b"[]," * (300 * MIB), compresslevel=9)


if __name__ == "__main__":
    uvloop.run(main(Hostile(sys.argv[1]).app()))
