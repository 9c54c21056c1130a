"""The way to a backend: a TCP proxy that can refuse, drop, delay, fall silent, and cut what passes in the middle."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

from tests.support.listening import accept_no_more

CHUNK = 4096
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def reserved() -> tuple[socket.socket, int]:
    """A port that stays ours while the socket is open, though nobody listens: connections to it are refused."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder, int(holder.getsockname()[1])


class Proxy:
    """Passes bytes between whoever connects to `port` and the backend at `target`."""

    def __init__(self, rng: random.Random) -> None:
        self.target = 0
        self._rng = rng
        self._holder, self.port = reserved()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._delay = 0.0
        self._cut: dict[str, bool] = {"answer": False, "question": False}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def heal(self) -> None:
        """Pass everything, at once."""
        self._passing.set()
        self._delay = 0.0
        self._cut = {"answer": False, "question": False}
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, limit=CHUNK)

    async def refuse(self) -> None:
        """Nobody listens any more."""
        server, self._server = self._server, None
        if server is not None:
            await accept_no_more(server.sockets)
            server.close()
        self.drop()

    def drop(self) -> None:
        """Reset all connections."""
        for writer in list(self._writers):
            _reset(writer)

    def fall_silent(self) -> None:
        """Nothing passes, but connections stand."""
        self._passing.clear()

    def delay(self, seconds: float) -> None:
        """Every chunk comes late."""
        self._delay = seconds

    def cut(self, what: str) -> None:
        """Each connection ends in the middle of its next answer, or question: by a reset, or as if it were whole."""
        self._cut[what] = True

    async def close(self) -> None:
        """End it."""
        await self.refuse()
        self._passing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        self._holder.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target, limit=CHUNK)
        except OSError:
            _reset(writer)
        else:
            self._writers.add(back)
            await asyncio.gather(self._pass("question", reader, back), self._pass("answer", there, writer))
            self._writers.discard(back)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pass(self, what: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay * self._rng.random())
                await self._passing.wait()
                if self._cut[what]:
                    writer.write(data[: self._rng.randrange(len(data))])
                    await writer.drain()
                    if self._rng.random() < 0.5:
                        break
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()
            else:
                writer.close()
                return
        except (ConnectionError, OSError):
            pass
        _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    writer.transport.abort()
