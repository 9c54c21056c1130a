"""A backend that keeps what it is sent byte for byte, and answers what it is told to; and raw requests to a gateway."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass, field

from tests.support.lab import Lab, until
from tests.support.raw_servers import RawServer, start_raw_server

_CALM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 42\r\n\r\n"
    b'{"queue_running": [], "queue_pending": []}'
)
_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3}) ")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """Its target."""
        return self.line.split(" ")[1]


@dataclass(slots=True)
class Recorder:
    """Listens as a backend. `answers` are whole raw answers by path; anything else gets what a calm ComfyUI says."""

    answers: dict[str, bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    url: str = ""
    _server: RawServer | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await start_raw_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop."""
        assert self._server is not None
        await self._server.close()

    @property
    def asked(self) -> list[Seen]:
        """What was passed on: all but what the gateway asks of itself."""
        own = ("/queue", "/system_stats", "/ws", "/object_info", "/features", "/models", "/embeddings", "/history")
        return [seen for seen in self.seen if not seen.path.startswith(own)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.raw += head
                line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
                body = await self._body(reader, headers)
                seen = Seen(line, headers, body)
                self.seen.append(seen)
                writer.write(self.answers.get(seen.path, _CALM))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "transfer-encoding" not in headers:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.raw += body
            return body
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(line.split(b";")[0], 16) + 2)
            self.raw += line + chunk
            if chunk == b"\r\n":
                return body
            body += chunk[:-2]


async def passes_on(lab: Lab, url: str) -> None:
    """Wait until a gateway hands on what it does not answer itself."""

    async def look() -> bool:
        async with lab.http.get(f"{url}/extensions/none") as answer:
            return answer.status == 200

    await until(look, what="the gateway passes on")


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back on one connection."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The status of each answer."""
        return [int(found) for found in _STATUS.findall(self.raw)]


async def talk(port: int, sent: bytes, silence: float = 0.5, tls: ssl.SSLContext | None = None) -> Heard:
    """Send bytes as they are; what comes back until the gateway closes, or has said nothing for `silence` seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    heard, closed = b"", False
    try:
        writer.write(sent)
        while not closed:
            async with asyncio.timeout(silence):
                piece = await reader.read(2**16)
            heard, closed = heard + piece, not piece
    except ConnectionError:
        closed = True
    except TimeoutError:
        pass
    finally:
        writer.close()
    return Heard(heard, closed)
