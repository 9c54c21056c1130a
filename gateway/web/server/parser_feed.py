"""Feed the HTTP parser: bound a request's head, and hold its body until the gate has admitted it.

A request's head has a bound. The bytes behind the head wait until the gate has admitted the request, because each chunk
of a stranger's body would cost the parser a microsecond. A body that no handler reads is neither parsed nor kept: the
gateway answers, throws away a little of what still comes, so that the client can read the answer, and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from gateway.comfy.errors import error_body
from gateway.web.http.base_path import path_of_head
from gateway.web.http.error_bodies import MAX_SHOWN, Protocol
from gateway.web.http.request_ids import new_request_id
from gateway.web.http.request_log import RequestLog
from gateway.web.http.v2_errors import refusal_in_bytes

# The usual bounds of web servers: a request's target, one header with its name, all headers of a request.
MAX_TARGET = 8190
MAX_FIELD = 16 * 1024
MAX_HEAD = 32 * 1024
# A method, the version, and the blanks between.
_REST_OF_LINE = 64
# Before a request is admitted the parser gets so much of what follows its head: a small body, or further requests.
MAX_AHEAD = 2 * 1024
# A longer piece is parsed in slices if it has so many lines, because each chunk and each request has some.
SLICE = 8 * 1024
BYTES_A_LINE = 32
# The unread rest of a body is read to its end if it is no longer than this, because the connection then goes on.
MAX_UNREAD = 64 * 1024
# Of a longer rest so much is thrown away. The connection is closed after so long, if the client has not closed it.
LINGER_BYTES = 64 * 1024
LINGER_SECONDS = 0.5

_END = b"\r\n\r\n"
# Bytes of a head that came in pieces which are kept for its path, in case it can't be read.
MAX_START = 512


class HeadTooLong(Exception):
    """A request's head is too long; `status` is 414 or 431."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def response(self, request_id: str, path: str) -> bytes:
        """Return the whole answer in bytes, because there is no request that aiohttp could answer."""
        body = error_body("malformed_request", "The request is not taken", str(self))
        return refusal_in_bytes(path, self.status, body, request_id)


class MalformedBody(Exception):
    """The body of a request is malformed. Raised where the body is read."""


class Head:
    """Counter of the bytes of one request's head. Pure.

    Args:
        is_begun: the parser may have the beginning already, because it came behind a body. So the first bytes are not
            held against the bound of a target: they may be the rest of a header.
    """

    __slots__ = ("_line", "_lines", "_seam", "size")

    def __init__(self, *, is_begun: bool = False) -> None:
        self.size = 0
        self._lines = 1 if is_begun else 0
        self._line = 0
        self._seam = b""

    def take(self, data: bytes) -> int | None:
        """Return how many of these bytes are left of the head, its end included; None if the head goes on.

        Raises:
            HeadTooLong: the head, or a line of it, has more bytes than the bounds allow.
        """
        # Empty lines before a request don't count (RFC 9112, section 2.2).
        start = 0 if self.size else len(data) - len(data.lstrip(b"\r\n"))
        joined = self._seam + data[start:]
        at = joined.find(_END)
        end = at + len(_END) - len(self._seam) + start if at >= 0 else len(data)
        self._count(data[start:end])
        self._seam = joined[-3:]
        return end if at >= 0 else None

    def _count(self, data: bytes) -> None:
        for number, line in enumerate(data.split(b"\n")):
            if number:
                self._lines += 1
                self._line = 0
            self._line += len(line)
            if not self._lines and self._line > MAX_TARGET + _REST_OF_LINE:
                raise HeadTooLong(414, f"the target has more than {MAX_TARGET} bytes")
            if self._line > MAX_FIELD + len(b"\r"):
                raise HeadTooLong(431, f"a header has more than {MAX_FIELD} bytes")
        self.size += len(data)
        if self.size > MAX_HEAD:
            raise HeadTooLong(431, f"the headers have more than {MAX_HEAD} bytes together")


class State(Enum):
    """State of a connection: HEAD until a head is whole, then SHUT until the gate opens it; GONE once it is closing."""

    HEAD = auto()
    SHUT = auto()
    OPEN = auto()
    GONE = auto()


# To look these up in their class costs each request a little.
_HEAD, _SHUT, _OPEN, _GONE = State


class ParserFeed:
    """The way from one connection to its parser. `held` is how many bytes wait.

    `on_lost` is called when the connection is gone, for a handler that waits long.

    Args:
        inner: aiohttp's protocol, which has the parser.
        http_log: has a line of each request whose head is too long.
        base_path: the prefix of the gateway's paths.
    """

    __slots__ = ("_ahead", "_base_path", "_dropped", "_head", "_held", "_http_log", "_inner", "_over", "_start",
                 "_transport", "held", "on_lost", "state")  # fmt: skip

    def __init__(self, inner: Protocol, http_log: RequestLog, base_path: str) -> None:
        self._inner = inner
        self._http_log = http_log
        self._base_path = base_path
        self._start = b""
        self._transport: asyncio.Transport | None = None
        self._head = Head()
        # The pieces as they came, because to put them together costs a stranger's share of time.
        self._held: deque[bytes | memoryview] = deque()
        self.held = 0
        self._ahead = 0
        self._dropped = 0
        self._over: asyncio.Future[None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.state = _HEAD

    @property
    def path(self) -> str:
        """Return the path of a request that could not be read, as far as it came."""
        return path_of_head(self._start, self._base_path)

    def made(self, transport: asyncio.Transport) -> None:
        """Begin: the connection stands."""
        self._transport = transport

    def lost(self) -> None:
        """End: the connection is gone."""
        self.state, self._transport = _GONE, None
        self._forget()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if self.on_lost is not None:
            self.on_lost()

    def take(self, data: bytes) -> None:
        """Pass bytes on to the parser, hold them, or throw them away."""
        state = self.state
        if self._held:
            self._hold(data)
        elif state is _HEAD:
            if 4 < len(data) <= MAX_AHEAD and data.find(_END, 4) == len(data) - 4 and not self._head.size:
                # Nearly all requests are one short head, which came in one piece.
                self.state, self._ahead = _SHUT, MAX_AHEAD
                self._parse(data)
            else:
                self._take_head(data)
        elif state is _GONE:
            self._drop(len(data))
        elif state is _SHUT:
            self._take_ahead(data)
        elif _is_dense(data):
            self._hold(data)
            self._pump()
        else:
            self._parse(data)

    def began(self) -> None:
        """Note that the parser has a whole head, whatever was counted: it may have come behind another request."""
        if self.state is _HEAD:
            self.state, self._ahead = _SHUT, MAX_AHEAD

    def open(self) -> None:
        """Let the parser have what follows the head: the request is admitted."""
        if self.state is _SHUT:
            self.state = _OPEN
            if self._held:
                self._pump()

    def ended(self) -> bool:
        """Turn to the next request, since one was answered and its body is read. Return True if some of it is held."""
        if self.state is _GONE:
            return False
        had_body = self.state is _OPEN
        # If further requests came behind this one, the parser has the head of the next already.
        self.state, self._ahead = (_SHUT, MAX_AHEAD) if self._inner._messages else (_HEAD, 0)
        self._start = b""
        if had_body or self._head.size:
            self._head = Head(is_begun=had_body)
        if not self._held:
            return False
        if self.state is _HEAD:
            asyncio.get_running_loop().call_soon(self._go_on)
        return True

    async def linger(self) -> None:
        """Wait for a while, or until the client closes: bytes to a closed socket would have it lose the answer."""
        self._leave()
        if self._transport is not None and not self._transport.is_closing():
            self._over = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._over], timeout=LINGER_SECONDS)

    def _take_head(self, data: bytes) -> None:
        at = data.find(_END) if not self._head.size else -1
        if 0 < at < MAX_TARGET and data[0] not in b"\r\n":
            # A whole head so short keeps to all bounds.
            end: int | None = at + len(_END)
        else:
            if len(self._start) < MAX_START:
                self._start += data[:MAX_START]
            try:
                end = self._head.take(data)
            except HeadTooLong as error:
                self._refuse(error)
                return
        if end is None:
            self._parse(data)
            return
        self.state, self._ahead = _SHUT, MAX_AHEAD
        if len(data) - end <= MAX_AHEAD:
            self._ahead -= len(data) - end
            self._parse(data)
        else:
            self._parse(data[:end])
            # Nearly all requests are admitted before anything else comes, so one piece does not stop the reading.
            self._held.append(memoryview(data)[end:])
            self.held = len(data) - end

    def _take_ahead(self, data: bytes) -> None:
        if len(data) <= self._ahead:
            self._ahead -= len(data)
            self._parse(data)
        else:
            self._hold(data)

    def _parse(self, data: bytes) -> None:
        inner = self._inner
        inner.data_received(data)
        if inner._messages and type(fault := inner._messages[-1][0]) is _ErrInfo:
            # The traceback holds the bytes, and is in a circle with itself: they would stay until the next collection.
            fault.exc.__traceback__ = None
            self._start = self._start or data[:MAX_START]
            inner.unread_path = self.path
            request = inner._current_request
            if request is not None and not request.content.is_eof():
                # aiohttp tells the body's reader nothing, so it would wait until the body is too slow. Tell it in a
                # later turn, because a reader of lines looks for no error between two pieces.
                error = MalformedBody(fault.message.partition("\n")[0].strip(" :")[:MAX_SHOWN] or "it is not HTTP")
                asyncio.get_running_loop().call_soon(request.content.set_exception, error)

    def _hold(self, data: bytes | memoryview) -> None:
        self._held.append(data)
        self.held += len(data)
        if not self._inner._buffer_paused:
            self._inner._pause_reading_for_buffer()

    def _pump(self) -> None:
        """Parse what is held, in slices if there is much to do."""
        if not self._held or self.state is not _OPEN:
            return
        piece = bytes(self._held.popleft())
        if _is_dense(piece):
            self._held.appendleft(memoryview(piece)[SLICE:])
            piece = piece[:SLICE]
        self.held -= len(piece)
        self._parse(piece)
        if self._held:
            asyncio.get_running_loop().call_soon(self._pump)
        elif self._inner._buffer_paused:
            self._inner._resume_reading_for_buffer()

    def _go_on(self) -> None:
        """Take what is held as the next request's."""
        if self._held and self.state is _HEAD:
            data = b"".join(self._held)
            self._forget()
            self._inner._resume_reading_for_buffer()
            self.take(data)

    def _forget(self) -> None:
        self._held.clear()
        self.held = 0

    def _refuse(self, error: HeadTooLong) -> None:
        # Nobody else writes to the connection: no request is being answered.
        if self._transport is None:
            return
        request_id = new_request_id()
        self._transport.write(error.response(request_id, self.path))
        self._http_log.refused(request_id, error.status, self._transport)
        if self._transport.can_write_eof():
            # The client learns that no more comes; not under TLS, which has no half-closed connections.
            with contextlib.suppress(OSError):
                # If the client is gone, asyncio's own transport says so here.
                self._transport.write_eof()
        self._leave()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    def _leave(self) -> None:
        self.state = _GONE
        # What is held is thrown away as well: if it is enough already, no more is read.
        self._dropped += self.held
        self._forget()
        transport, is_enough = self._transport, self._dropped > LINGER_BYTES
        if transport is not None and not transport.is_closing() and not transport.is_reading() and not is_enough:
            transport.resume_reading()

    def _drop(self, size: int) -> None:
        self._dropped += size
        transport = self._transport
        if self._dropped > LINGER_BYTES and transport is not None and transport.is_reading():
            transport.pause_reading()


# The intakes of all connections that stand, by aiohttp's protocol: the gate opens them.
INTAKES: web.AppKey[dict[web.RequestHandler, ParserFeed]] = web.AppKey("intakes", dict)


def _is_dense(data: bytes) -> bool:
    """Return True if a piece is long and has so many lines that it must be parsed in slices."""
    # Most bodies are JSON in one line, and to look for a line's end takes less time than to count them.
    return len(data) > SLICE and b"\n" in data and data.count(b"\n") * BYTES_A_LINE > len(data)
