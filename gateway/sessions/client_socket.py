"""One client's WebSocket. Frames go through its sequencer and its outbox, and a task of its own writes them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from aiohttp import ClientConnectionError, WSCloseCode, WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from gateway.comfy import events, json_codec, previews
from gateway.comfy.events import Frame, Kind
from gateway.jobs.state.shown_running import Listener
from gateway.sessions.buffer_bounds import Buffers
from gateway.sessions.frame_writer import FrameWriter
from gateway.sessions.intake import Intake
from gateway.sessions.outbox import Outbox, pause_after
from gateway.sessions.sequencer import Sequencer
from gateway.store.spool import Lost
from gateway.telemetry import logs
from gateway.telemetry.metrics import Metrics

_log = logs.get("sessions")

CLOSE_LIMIT = 2.0


class ClientSocket:
    """Connected socket of a tenant's client.

    Args:
        stream: the stream writer of the prepared `response`.
        transport: the socket's connection.
        features: returns the flags for the answer to the client's ``feature_flags``.
        max_buffer: maximum bytes that wait for this reader.
        buffers: count of the bytes that wait for all readers.
        listener: the socket's entry in the ledger, which has its order of events.
    """

    def __init__(
        self,
        response: web.WebSocketResponse,
        stream: AbstractStreamWriter,
        transport: asyncio.Transport,
        session_id: str,
        metrics: Metrics,
        features: Callable[[], dict[str, Any]],
        max_buffer: int,
        buffers: Buffers,
        tenant: str,
        listener: Listener,
        *,
        interleave: bool,
    ) -> None:
        self.session_id = session_id
        self.intake: Intake | None = None
        self._writing: Frame | None = None
        self._writing_since: float | None = None
        self._response = response
        self._transport = transport
        self._writer = FrameWriter(response, stream, transport, self._moved)
        self._metrics = metrics
        self._features = features
        self._max_buffer = max_buffer
        self._sequencer = Sequencer(interleave=interleave)
        self._buffers = buffers
        self._tenant = tenant
        self._listener = listener
        self._counted = buffers.join(tenant, self)
        self._outbox = Outbox(max_buffer, self._counted.shared)
        self._in_transport = 0
        self._is_counted = False
        self._ready = asyncio.Event()
        self._wants_metadata = False
        self._in_turn = not interleave
        self._held: Frame | None = None
        self._closing: tuple[int, str] | None = None

    @property
    def held(self) -> int:
        """Return the bytes that wait for this reader."""
        return self._outbox.bytes + self._sequencer.waiting_bytes + self._in_transport + self._in_writing

    @property
    def _in_writing(self) -> int:
        """Return the bytes in memory of a large frame that is being written."""
        writing = self._writing
        return writing.bulk.held if writing is not None and writing.bulk is not None else 0

    @property
    def is_closing(self) -> bool:
        """Return True if the socket takes no more frames."""
        return self._closing is not None

    def send(self, frame: Frame) -> None:
        """Queue a frame for this client, to be written when its turn comes. Never wait."""
        if self._closing is not None:
            return
        for due in self._sequencer.feed(frame):
            self._order(due)
        sequencer = self._sequencer
        if sequencer.waiting and sequencer.waiting_bytes > self._max_buffer // 2:
            self._drop(sequencer.thin())
        if sequencer.waiting and sequencer.waiting_bytes > self._max_buffer:
            self.close(WSCloseCode.TRY_AGAIN_LATER, "too many events of parallel prompts wait for this socket")
        if self._writing_since is not None or sequencer.waiting:
            # Count only for a slow reader, because for others all frames are written in this turn of the event loop.
            self._count()

    def _count(self) -> None:
        self._is_counted = True
        self._in_transport = self._transport.get_write_buffer_size() if self._writing_since is not None else 0
        outbox = self._outbox
        own = outbox.bytes - outbox.large_bytes + self._sequencer.waiting_bytes + self._in_transport
        own += self._in_writing
        self._buffers.count(self._counted, self, own)

    def _order(self, frame: Frame) -> None:
        """Turn previews into type 1 for a client that did not declare more, and put them after their ``progress``.

        ComfyUI sends type 4 before ``progress`` and type 1 after it (progress.py, and main.py's progress hook).
        """
        held, self._held = self._held, None
        if (frame.kind is Kind.PREVIEW or frame.kind is Kind.RESULT) and not self._wants_metadata:
            # The payload of a large frame is its head before the picture. Both forms share the picture.
            if frame.legacy is None and (legacy := previews.to_legacy(frame.payload)) is not None:
                # Keep the legacy form on the frame, because all sockets of the session share it.
                frame.legacy = replace(frame, said=legacy, heard_at=0.0)
            self._held = frame.legacy
        if held is not None and frame.slot != "progress":
            self._put(held)
            held = None
        if self._held is None:
            self._put(frame)
        if held is not None:
            self._put(held)

    def _put(self, frame: Frame) -> None:
        if dropped := self._outbox.put(frame):
            self._drop(dropped)
        if self._outbox.overflowing:
            self._metrics.slow_closed.inc()
            self.close(WSCloseCode.TRY_AGAIN_LATER, "this socket is read too slowly")
        self._ready.set()

    def _drop(self, frames: Iterable[Frame]) -> None:
        for dropped in frames:
            self._metrics.dropped.labels(str(dropped.kind)).inc()

    def thin(self) -> bool:
        """Drop all frames that may be dropped. Return True if that frees at least half of the bytes."""
        before = self.held
        self._drop([*self._sequencer.thin(), *self._outbox.thin()])
        self._count()
        return self.held <= before // 2

    def give_up(self) -> None:
        """Close the socket, because its tenant's sockets, or all, hold too much, and this one holds most."""
        self._metrics.slow_closed.inc()
        self.close(WSCloseCode.TRY_AGAIN_LATER, "this socket is read too slowly for all that its caller has open")

    def close(self, code: int, reason: str) -> None:
        """Drop the waiting frames, and close the socket: with a close frame if the peer reads, else without."""
        if self._closing is not None:
            return
        self._closing = (code, reason)
        if code == WSCloseCode.TRY_AGAIN_LATER:
            self._tell_dropped()
        self._outbox.clear()
        self._sequencer.clear()
        self._held = None
        self._ready.set()
        if self._writing_since is not None or self._writer.is_amid:
            # Abort after a while, because the writer waits for a peer that may never read, before it can close.
            asyncio.get_running_loop().call_later(CLOSE_LIMIT, self._transport.abort)
        self._count()

    def _tell_dropped(self) -> None:
        """Log the results that the reader will not get."""
        waiting = [*self._outbox.results(), *self._sequencer.results()]
        waiting += [each for each in (self._writing, self._held) if each is not None and each.kind is Kind.RESULT]
        for prompt_id in dict.fromkeys(frame.prompt_id for frame in waiting):
            count = sum(frame.prompt_id == prompt_id for frame in waiting)
            self._metrics.dropped.labels(str(Kind.RESULT)).inc(count)
            _log.warning("result_dropped", prompt_id=prompt_id, tenant=self._tenant, frames=count, reason="slow reader")

    def is_stalled(self, now: float, after: float) -> bool:
        """Return True if the reader has taken nothing of one write for more than `after` seconds."""
        return self._writing_since is not None and now - self._writing_since > after

    def drop(self) -> None:
        """Cut the connection of a reader that does not read."""
        self._metrics.slow_closed.inc()
        self.close(WSCloseCode.TRY_AGAIN_LATER, "stalled")
        self._transport.abort()

    def refuse(self) -> None:
        """Close the socket, because the client sends too much."""
        self._metrics.flooding_closed.inc()
        self.close(WSCloseCode.POLICY_VIOLATION, "too many messages, or too large ones")

    async def run(self) -> None:
        """Serve the socket until either side closes it."""
        writer = asyncio.get_running_loop().create_task(self._write(), name=f"socket:{self.session_id}")
        try:
            await self._read()
        finally:
            if self._writer.is_amid:
                # If the peer closes amid a frame, finish the frame first, because a close frame inside would spoil it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_LIMIT):
                        await self._writer.end()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await self._answer_closing()

    async def _answer_closing(self) -> None:
        if self._writer.is_torn:
            self._transport.abort()
            return
        with contextlib.suppress(ClientConnectionError, ConnectionError, TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT):
                await self._response.close(drain=False)

    def leave(self) -> None:
        """Release all that the socket holds, because it is served no longer."""
        self.close(WSCloseCode.GOING_AWAY, "")
        self._writing = None
        self._writer.release()
        self._buffers.leave(self._tenant, self)
        self._listener.leave()

    async def _read(self) -> None:
        first = True
        async for message in self._response:
            if self.intake is not None and self.intake.is_refusing:
                # After a refusal ignore all messages that were read already, until the connection ends.
                continue
            if message.type is WSMsgType.PING:
                with contextlib.suppress(ClientConnectionError):
                    await self._writer.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                if first:
                    self._greet(message.data)
                first = False

    def _greet(self, text: str) -> None:
        """Answer a first message that declares the client's flags with the gateway's flags (server.py)."""
        try:
            value = json_codec.loads(text)
        except json_codec.MalformedJson:
            return
        if not isinstance(value, dict) or value.get("type") != "feature_flags":
            return
        flags = value.get("data")
        self._put(Frame(Kind.LIFECYCLE, events.encode("feature_flags", self._features())))
        if isinstance(flags, dict) and flags.get("supports_preview_metadata") is True:
            self._wants_metadata, self._in_turn = True, False
            self._listener.interleave()
            for frame in self._sequencer.interleave():
                self._order(frame)

    async def _write(self) -> None:
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while self._closing is None and (frame := self._outbox.take()) is not None:
                    await self._write_one(frame)
                    if frame.kind is Kind.END and self._in_turn:
                        await self._pause(pause_after(len(self._outbox)))
                if self._is_counted:
                    self._count()
                    self._is_counted = bool(self._sequencer.waiting)
                if self._closing is not None:
                    code, reason = self._closing
                    async with asyncio.timeout(CLOSE_LIMIT):
                        await self._response.close(code=code, message=reason.encode())
                    return
        except TimeoutError:
            # If the peer does not take the close frame, abort, because the transport would wait for it for ever.
            self._transport.abort()
        except Lost:
            self._metrics.slow_closed.inc()
            self.close(WSCloseCode.TRY_AGAIN_LATER, "a message for this socket could not be kept on disk")
            self._transport.abort()
        except (ClientConnectionError, ConnectionError) as error:
            # If the peer went away, the reading side ends as well and cleans up. Drop the traceback, because aiohttp's
            # future and the error hold each other and, by it, the frame being written: its file would stay until
            # garbage is collected.
            error.with_traceback(None)

    async def _pause(self, seconds: float) -> None:
        # Set `_writing_since`, so that frames that come during the pause are counted as behind a slow write.
        self._writing_since = time.monotonic()
        await asyncio.sleep(seconds)
        self._writing_since = None

    async def _write_one(self, frame: Frame) -> None:
        began = time.monotonic()
        self._writing, self._writing_since = frame, began
        if frame.bulk is None and not self._writer.is_amid:
            await self._response.send_frame(frame.payload, WSMsgType.BINARY if frame.binary else WSMsgType.TEXT)
        else:
            await self._writer.write(frame)
        self._writing = self._writing_since = None
        metrics = self._metrics
        metrics.events[frame.kind].inc()
        metrics.traffic.to_clients += frame.size
        if frame.heard_at:
            metrics.event_delay.observe(began - frame.heard_at)

    def _moved(self) -> None:
        self._writing_since = time.monotonic()
