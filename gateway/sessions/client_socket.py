"""One client's WebSocket: frames go through its sequencer and its outbox, and a task of its own writes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiohttp import ClientConnectionError, WSCloseCode, WSMsgType, web

from gateway.comfy import events, previews, wire
from gateway.comfy.events import Frame, Kind
from gateway.sessions.outbox import Outbox
from gateway.sessions.sequencer import Sequencer
from gateway.telemetry.metrics import Metrics

MAX_CLIENT_MESSAGE = 1024 * 1024
CLOSE_LIMIT = 2.0


class ClientSocket:
    """A connected socket.

    Args:
        features: gives the flags that are answered to the client's ``feature_flags``.
        max_buffer: bytes that may wait for this reader.
    """

    def __init__(
        self,
        response: web.WebSocketResponse,
        session_id: str,
        metrics: Metrics,
        features: Callable[[], dict[str, Any]],
        max_buffer: int,
        *,
        interleave: bool,
    ) -> None:
        self.session_id = session_id
        self.writing_since: float | None = None
        self._response = response
        self._metrics = metrics
        self._features = features
        self._max_buffer = max_buffer
        self._sequencer = Sequencer(interleave=interleave)
        self._outbox = Outbox(max_buffer)
        self._ready = asyncio.Event()
        self._wants_metadata = False
        self._held: Frame | None = None
        self._closing: tuple[int, str] | None = None

    def send(self, frame: Frame) -> None:
        """Take a frame for this client; it is written when its turn comes. Never waits."""
        if self._closing is not None:
            return
        for due in self._sequencer.feed(frame):
            self._order(due)
        if self._sequencer.waiting_bytes > self._max_buffer:
            self.close(WSCloseCode.TRY_AGAIN_LATER, "too many events of parallel prompts wait for this socket")

    def _order(self, frame: Frame) -> None:
        """Turn previews into type 1 for a client that did not declare more, and put them after their ``progress``.

        A ComfyUI sends type 4 before ``progress`` and type 1 after it (progress.py, and main.py's progress hook).
        """
        held, self._held = self._held, None
        if frame.kind is Kind.PREVIEW and not self._wants_metadata:
            legacy = previews.to_legacy(frame.payload)
            if legacy is not None:
                self._held = replace(frame, said=legacy)
        if held is not None and frame.slot != "progress":
            self._put(held)
            held = None
        if self._held is None:
            self._put(frame)
        if held is not None:
            self._put(held)

    def _put(self, frame: Frame) -> None:
        for dropped in self._outbox.put(frame):
            self._metrics.dropped.labels(str(dropped.kind)).inc()
        if self._outbox.overflowing:
            self._metrics.slow_closed.inc()
            self.close(WSCloseCode.TRY_AGAIN_LATER, "this socket is read too slowly")
        self._ready.set()

    def close(self, code: int, reason: str) -> None:
        """Close it: politely if the peer reads, else by dropping the connection."""
        if self._closing is None:
            self._closing = (code, reason)
            self._ready.set()

    def is_stalled(self, now: float, after: float) -> bool:
        """Whether one write has been waiting for the reader for `after` seconds."""
        return self.writing_since is not None and now - self.writing_since > after

    def drop(self, request: web.Request) -> None:
        """Cut the connection of a reader that does not read."""
        self._metrics.slow_closed.inc()
        self._closing = (WSCloseCode.TRY_AGAIN_LATER, "stalled")
        if request.transport is not None:
            request.transport.abort()

    async def run(self) -> None:
        """Serve the socket until either side closes it."""
        writer = asyncio.get_running_loop().create_task(self._write(), name=f"socket:{self.session_id}")
        try:
            await self._read()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self) -> None:
        first = True
        async for message in self._response:
            if message.type is WSMsgType.TEXT:
                if first:
                    self._greet(message.data)
                first = False

    def _greet(self, text: str) -> None:
        """The first message may declare the client's flags; it is answered with ours (server.py)."""
        try:
            value = wire.loads(text)
        except wire.MalformedJson:
            return
        if not isinstance(value, dict) or value.get("type") != "feature_flags":
            return
        flags = value.get("data")
        self._put(Frame(Kind.LIFECYCLE, events.encode("feature_flags", self._features())))
        if isinstance(flags, dict) and flags.get("supports_preview_metadata") is True:
            self._wants_metadata = True
            for frame in self._sequencer.interleave():
                self._order(frame)

    async def _write(self) -> None:
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while self._closing is None and (frame := self._outbox.take()) is not None:
                    await self._write_one(frame)
                if self._closing is not None:
                    code, reason = self._closing
                    async with asyncio.timeout(CLOSE_LIMIT):
                        await self._response.close(code=code, message=reason.encode())
                    return
        except (ClientConnectionError, ConnectionError, TimeoutError):
            # The peer went away; the reading side ends as well and cleans up.
            return

    async def _write_one(self, frame: Frame) -> None:
        self.writing_since = time.monotonic()
        await self._response.send_frame(frame.payload, WSMsgType.BINARY if frame.binary else WSMsgType.TEXT)
        self.writing_since = None
        self._metrics.events.labels(str(frame.kind)).inc()
