"""A client as a test sees it: posts prompts, reads what it is told."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.support.lab import until

# A secret folder, or a file that is called after one (gateway/tenants/secret_names.py).
SECRET_FOLDER = re.compile(rb"(?<![0-9A-Za-z])[uo](?:[/\\\\-]|%2[Ff]|%5[Cc])+[0-9a-f]{32}(?![0-9a-f])")


class Comfy:
    """A ComfyUI, or a gateway, at `url`, with the headers of one caller.

    Whatever a caller with a key receives, in any test, names no secret folder.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, **headers: str) -> None:
        self.http = http
        self.url = url
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        # False for a caller that names secret folders itself: refusals repeat what was sent.
        self.is_watched = bool(headers)

    def watch(self, what: str, raw: bytes) -> None:
        """Assert that received bytes name no secret folder."""
        found = SECRET_FOLDER.search(raw) if self.is_watched else None
        assert found is None, (what, found)

    async def get(self, path: str, **params: str) -> Any:
        """GET JSON."""
        async with self.http.get(self.url + path, params=params, headers=self.headers) as answer:
            self.watch(path, await answer.read())
            assert answer.status == 200, (path, answer.status, await answer.text())
            return await answer.json()

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        """POST JSON; (status, JSON or text)."""
        async with self.http.post(self.url + path, json=body, headers=self.headers) as answer:
            self.watch(path, await answer.read())
            is_json = answer.headers.get("Content-Type", "").startswith("application/json")
            return answer.status, await answer.json() if is_json else await answer.text()

    async def prompt(self, prompt: dict[str, Any], client_id: str | None = None, **more: Any) -> str:
        """Send a prompt that must be accepted; its id."""
        body = {"prompt": prompt, **more}
        if client_id is not None:
            body["client_id"] = client_id
        status, answer = await self.post("/prompt", body)
        assert status == 200, answer
        return str(answer["prompt_id"])

    async def entry(self, prompt_id: str, limit: float = 30.0) -> dict[str, Any]:
        """The history entry, when it is there."""

        async def look() -> Any:
            return (await self.get(f"/history/{prompt_id}")).get(prompt_id)

        found: dict[str, Any] = await until(look, limit, f"history of {prompt_id}")
        return found

    async def running(self, prompt_id: str) -> None:
        """Wait until it runs, also if another prompt is the one that /queue shows as running."""

        async def look() -> bool:
            return bool((await self.get(f"/api/jobs/{prompt_id}")).get("status") == "in_progress")

        await until(look, what=f"{prompt_id} runs")

    async def view(self, image: dict[str, str]) -> bytes:
        """An image."""
        async with self.http.get(f"{self.url}/view", params=image, headers=self.headers) as answer:
            assert answer.status == 200, (image, answer.status, await answer.text())
            return await answer.read()

    def images(self, entry: dict[str, Any]) -> list[dict[str, str]]:
        """The images of a history entry."""
        return [image for output in entry["outputs"].values() for image in output.get("images", [])]

    async def listen(self, client_id: str, query: str = "", flags: dict[str, Any] | None = None) -> Listener:
        """Connect a WebSocket."""
        url = f"{self.url}/ws?clientId={client_id}{query}"
        listener = Listener(await self.http.ws_connect(url, max_msg_size=0, headers=self.headers), self.watch)
        if flags is not None:
            await listener.socket.send_json({"type": "feature_flags", "data": flags})
        await listener.next("status")
        return listener


class Listener:
    """What a WebSocket is told, in order: JSON messages, and ``binary N`` with the prompt's id where it says one."""

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, watch: Callable[[str, bytes], None] = lambda *_: None
    ) -> None:
        self.socket = socket
        self.watch = watch
        self.heard: list[dict[str, Any]] = []

    async def receive(self, limit: float = 20.0) -> dict[str, Any]:
        """The next message."""
        message = await self.socket.receive(limit)
        if message.type is aiohttp.WSMsgType.BINARY:
            event = {"type": f"binary {struct.unpack('>I', message.data[:4])[0]}", "data": {}, "raw": message.data}
        elif message.type is aiohttp.WSMsgType.TEXT:
            self.watch("/ws", message.data.encode())
            event = json.loads(message.data)
        else:
            event = {"type": f"closed {message.type.name}", "data": {"code": message.data}}
        self.heard.append(event)
        return event

    async def next(self, type_: str, **data: Any) -> dict[str, Any]:
        """The next message of a type with these data; all before it are kept in `heard`."""
        while True:
            event = await self.receive()
            if event["type"] == type_ and all(event["data"].get(k) == v for k, v in data.items()):
                return event
            assert not event["type"].startswith("closed"), event

    async def end_of(self, prompt_id: str) -> None:
        """Wait until a prompt is over; return at once if its end was heard already, before another prompt's."""
        end = {"type": "executing", "data": {"node": None, "prompt_id": prompt_id}}
        if end not in self.heard:
            await self.next("executing", prompt_id=prompt_id, node=None)

    def of(self, prompt_id: str) -> list[str]:
        """The types of what was told of a prompt."""
        return [event["type"] for event in self.heard if event["data"].get("prompt_id") == prompt_id]

    async def silent(self, seconds: float = 0.3) -> None:
        """Assert that nothing more comes."""
        try:
            event = await self.receive(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"unexpected: {event}")
