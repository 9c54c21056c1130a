"""The /ws side (server.py): connections, and the messages to each."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

from aiohttp import WSMsgType, web

from gateway.comfy import json_codec, previews
from gateway.comfy.previews import Preview
from gateway.simulator.faults import Faults
from gateway.simulator.oddities import Oddities

FEATURES: dict[str, Any] = {
    "supports_preview_metadata": True,
    "supports_model_type_tags": True,
    "extension": {"manager": {"supports_v4": True}},
    "node_replacements": True,
    "assets": False,
}

_Message = tuple[str | bytes, str | None]


class Sockets:
    """All sockets. Messages are sent in the order of `send`, by one task (server.py, publish_loop)."""

    def __init__(self, max_upload_mb: float, faults: Faults, oddities: Oddities) -> None:
        self._faults = faults
        self._oddities = oddities
        # As comfy_api/feature_flags.py: a float where the option is one.
        self.features = {**FEATURES, "max_upload_size": int(max_upload_mb * 1024 * 1024)}
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._flags: dict[str, dict[str, Any]] = {}
        self._messages: asyncio.Queue[_Message] = asyncio.Queue()
        self.executing: tuple[str, str] | None = None

    def send(self, type_: str, data: dict[str, Any], sid: str | None) -> None:
        """Send to one client, or to all (None)."""
        self._messages.put_nowait((json_codec.dumps({"type": type_, "data": data}).decode(), sid))

    def wants_metadata(self, sid: str | None) -> bool:
        """Return True if a client declared ``supports_preview_metadata``."""
        return sid is not None and self._flags.get(sid, {}).get("supports_preview_metadata") is True

    def send_preview(self, preview: Preview, sid: str | None, *, with_metadata: bool) -> None:
        """Send a preview in one of its two forms."""
        encode = previews.encode_with_metadata if with_metadata else previews.encode_legacy
        self._messages.put_nowait((encode(preview), sid))

    def send_bytes(self, data: bytes) -> None:
        """Send a binary message to all."""
        self._messages.put_nowait((data, None))

    async def publish(self) -> None:
        """Send the queued messages, for ever.

        Raises:
            TypeError: a message is for a client_id that is a list or an object.
        """
        while True:
            message, sid = await self._messages.get()
            targets = list(self._sockets.values()) if sid is None else [self._sockets.get(sid)]
            for socket in targets:
                if socket is not None and not socket.closed:
                    if self._faults.get("odd") is not None:
                        await _write(socket, self._oddities.message())
                    await _write(socket, message)
            self._messages.task_done()

    async def drained(self) -> None:
        """Wait until all that was queued is sent."""
        await self._messages.join()

    async def serve(self, request: web.Request, remaining: int) -> web.WebSocketResponse:
        """Serve one socket. A second one with the same clientId displaces the first, which hears nothing more."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.rel_url.query.get("clientId") or uuid.uuid4().hex
        self._sockets.pop(sid, None)
        self._sockets[sid] = socket
        self._flags[sid] = {}
        self.send("status", {"status": {"exec_info": {"queue_remaining": remaining}}, "sid": sid}, sid)
        if self.executing is not None and self.executing[0] == sid:
            self.send("executing", {"node": self.executing[1]}, sid)
        try:
            first = True
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    if first and not self._faults.get("no-features"):
                        self._greet(sid, message.data)
                    first = False
        finally:
            # By sid alone, as ComfyUI does (server.py, websocket_handler): one that displaced this one goes unheard.
            self._sockets.pop(sid, None)
            self._flags.pop(sid, None)
        return socket

    def _greet(self, sid: str, text: str) -> None:
        try:
            value = json_codec.loads(text)
        except json_codec.MalformedJson:
            return
        if isinstance(value, dict) and value.get("type") == "feature_flags":
            flags = value.get("data")
            self._flags[sid] = flags if isinstance(flags, dict) else {}
            self.send("feature_flags", self.features, sid)

    async def close(self) -> None:
        """Close all sockets."""
        for socket in list(self._sockets.values()):
            await socket.close()

    def drop(self) -> None:
        """Cut all connections, without a word."""
        for socket in list(self._sockets.values()):
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()


async def _write(socket: web.WebSocketResponse, message: str | bytes) -> None:
    # A peer that is gone between the look and the write: its handler cleans up.
    with contextlib.suppress(ConnectionError, RuntimeError):
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_str(message)
