"""Writer of frames to one client's connection, large ones piece by piece.

A large message goes out as one WebSocket frame, as from ComfyUI, because some clients can't join fragments. So nothing
else may be written until its last piece is, neither a pong nor a close frame.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from gateway.comfy.events import Frame

# A whole message in one frame (RFC 6455, section 5.2).
_LAST = 0x80
_LENGTH_IN_2_BYTES, _LENGTH_IN_8_BYTES = 126, 127


class FrameWriter:
    """Writer of whole frames, one at a time.

    Attributes:
        is_torn: True while a part of a frame is written, and not all of it.

    Args:
        stream: the stream writer of the prepared `response`.
        moved: called whenever the reader has taken some of a large frame.
    """

    def __init__(
        self,
        response: web.WebSocketResponse,
        stream: AbstractStreamWriter,
        transport: asyncio.Transport,
        moved: Callable[[], None],
    ) -> None:
        self._response = response
        self._stream = stream
        self._transport = transport
        self._moved = moved
        self._lock = asyncio.Lock()
        self.is_torn = False

    @property
    def is_amid(self) -> bool:
        """Return True while a frame is being written, so that nothing else may be."""
        return self._lock.locked()

    async def write(self, frame: Frame) -> None:
        """Write a frame, as fast as its reader reads.

        Raises:
            Lost: the frame's large part is gone. A part of the frame may be written.
        """
        kind = WSMsgType.BINARY if frame.binary else WSMsgType.TEXT
        async with self._lock:
            if frame.bulk is None:
                await self._response.send_frame(frame.payload, kind)
                return
            self.is_torn = True
            self._put(_head(kind, frame.size) + frame.payload)
            async for piece in frame.bulk.pieces():
                self._put(piece)
                await self._stream.drain()
                self._moved()
                # Yield to the event loop, because drain returns at once if the reader is fast.
                await asyncio.sleep(0)
            self.is_torn = False

    def _put(self, piece: bytes | memoryview) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closing")
        self._transport.write(piece)

    async def pong(self, data: bytes) -> None:
        """Answer a ping."""
        async with self._lock:
            await self._response.pong(data)

    def release(self) -> None:
        """Drop the reference to the socket, because it would form a cycle with this writer."""
        self._moved = _nothing

    async def end(self) -> None:
        """Wait until no frame is half written."""
        async with self._lock:
            pass


def _head(kind: WSMsgType, size: int) -> bytes:
    """Return the head of a frame. Browsers close the connection if a length has more bytes than it needs."""
    if size < 126:
        return struct.pack(">BB", _LAST | kind, size)
    if size < 2**16:
        return struct.pack(">BBH", _LAST | kind, _LENGTH_IN_2_BYTES, size)
    return struct.pack(">BBQ", _LAST | kind, _LENGTH_IN_8_BYTES, size)


def _nothing() -> None:
    """Do nothing."""
