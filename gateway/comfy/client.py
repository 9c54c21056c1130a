"""The HTTP interface of one ComfyUI, with errors that say who is to blame and whether anything was sent."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
from multidict import MultiMapping
from yarl import URL

from gateway.comfy import wire

# A ComfyUI's own limit on what one message may weigh: none. Previews and custom events of some MB are seen.
MAX_SOCKET_MESSAGE = 128 * 1024 * 1024
# An answer that is read whole, decompressed. The /object_info of a large installation has some 10 MB.
MAX_ANSWER = 256 * 1024 * 1024


class BackendError(Exception):
    """A backend did not do what was asked."""


class Unreachable(BackendError):
    """No connection was made, so nothing was sent."""


class Refused(Unreachable):
    """The connection was refused: no process listens there."""


class Unanswered(BackendError):
    """Something was sent and no whole answer came back: it may have been carried out."""


class TimedOut(Unanswered):
    """No answer within the time limit, while the connection stands: slow, which is not dead."""


class BadAnswer(BackendError):
    """An answer came that a ComfyUI does not give. `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """What one backend wants of its callers: the value of Authorization, and how TLS to it is made."""

    authorization: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: MultiMapping[str]
    body: bytes


class ComfyClient:
    """Calls to one ComfyUI. Times are seconds.

    Args:
        base: its URL, without a slash at the end.
        session: the HTTP session; its owner closes it.
        connect_timeout: limit for making a connection.
        timeout: limit for a whole call, where a call does not say otherwise.
        access: what this ComfyUI, or a proxy before it, wants of its callers.
    """

    def __init__(
        self,
        base: str,
        session: aiohttp.ClientSession,
        connect_timeout: float = 3.0,
        timeout: float = 5.0,
        access: Access = Access(),
    ) -> None:
        self.base = base
        self._session = session
        self._authorization = {"Authorization": access.authorization} if access.authorization else {}
        self._tls: ssl.SSLContext | bool = access.tls or True
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._prompt_url = self.url("/prompt")

    def url(self, path_qs: str) -> URL:
        """The address of a path, which is taken as encoded."""
        return URL(self.base + path_qs, encoded=True)

    def limit(self, total: float | None, sock_read: float | None = None) -> aiohttp.ClientTimeout:
        """Time limits for one call."""
        return aiohttp.ClientTimeout(total=total, sock_connect=self._connect_timeout, sock_read=sock_read)

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float | None = -1,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its whole answer, whatever its status.

        Raises:
            Unreachable, Unanswered: see there.
        """
        total = self._timeout if timeout == -1 else timeout
        sent_headers = {"Content-Type": "application/json"} if body is not None else {}
        sent_headers.update(headers or {})
        sent_headers.update(self._authorization)
        try:
            async with self._session.request(
                method,
                self._prompt_url if path == "/prompt" else self.url(path),
                data=body,
                headers=sent_headers,
                timeout=self.limit(total),
                allow_redirects=False,
                ssl=self._tls,
            ) as response:
                return Answer(response.status, response.headers, await whole(response))
        except (aiohttp.ClientError, OSError) as error:
            raise translated(error) from error

    async def json(self, path: str, *, timeout: float | None = -1) -> Any:
        """GET a path and parse the answer.

        Raises:
            BadAnswer: it was not 200, or not JSON.
        """
        return _parsed(path, await self.call("GET", path, timeout=timeout))

    async def queue(self) -> Queue:
        """GET /queue."""
        value = await self.json("/queue")
        try:
            return Queue(_items(value["queue_running"]), _items(value["queue_pending"]))
        except (KeyError, TypeError) as error:
            raise BadAnswer("GET /queue did not answer as ComfyUI does", 200) from error

    async def system_stats(self) -> dict[str, Any]:
        """GET /system_stats."""
        value = await self.json("/system_stats")
        if not isinstance(value, dict) or not isinstance(value.get("system"), dict):
            raise BadAnswer("GET /system_stats did not answer as ComfyUI does", 200)
        return value

    async def history_entry(self, prompt_id: str, *, timeout: float | None = -1) -> HistoryEntry | None:
        """GET /history/{prompt_id}: the entry, None if there is none."""
        path = f"/history/{prompt_id}"
        answer = await self.call("GET", path, timeout=timeout)
        value = _parsed(path, answer)
        entry = value.get(prompt_id) if isinstance(value, dict) else None
        return HistoryEntry(entry, wire.encoder_for(answer.body)) if isinstance(entry, dict) else None

    async def delete_pending(self, prompt_ids: Sequence[str]) -> None:
        """POST /queue: take prompts out of the queue. One that runs is left alone (execution.py)."""
        await self._order("/queue", {"delete": list(prompt_ids)})

    async def interrupt(self, prompt_id: str) -> None:
        """POST /interrupt: stop this prompt if it is the one that runs.

        An older ComfyUI does not read the id and stops whatever runs.
        """
        await self._order("/interrupt", {"prompt_id": prompt_id})

    async def delete_history(self, prompt_ids: Sequence[str]) -> None:
        """POST /history: forget entries."""
        await self._order("/history", {"delete": list(prompt_ids)})

    async def free(self) -> None:
        """POST /free: unload all models, and let go of memory and cached results, when what runs is over (main.py)."""
        await self._order("/free", {"unload_models": True, "free_memory": True})

    async def _order(self, path: str, body: dict[str, Any]) -> None:
        answer = await self.call("POST", path, wire.dumps(body))
        if answer.status != 200:
            raise BadAnswer(f"POST {path} answered {answer.status}", answer.status)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path_qs: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        sock_read: float | None = 60.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose answer is read as a stream, bytes as they are (nothing is decompressed).

        `sock_read` limits the wait for the next bytes.
        """
        async with (
            translated_errors(),
            self._session.request(
                method,
                self.url(path_qs),
                headers={**(headers or {}), **self._authorization} if self._authorization else headers,
                data=data,
                timeout=self.limit(None, sock_read),
                allow_redirects=False,
                auto_decompress=False,
                ssl=self._tls,
            ) as response,
        ):
            yield response

    @asynccontextmanager
    async def socket(self, client_id: str, heartbeat: float = 20.0) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The /ws of this ComfyUI, as `client_id`. `heartbeat` is the seconds between pings."""
        async with (
            translated_errors(),
            # A session of its own: aiohttp follows redirects of a handshake, and only a session can be told not to.
            aiohttp.ClientSession(
                connector=self._session.connector,
                connector_owner=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_refusing_redirects()],
            ) as session,
            session.ws_connect(
                self.url(f"/ws?clientId={client_id}"),
                headers={**self._session.headers, **self._authorization},
                max_msg_size=MAX_SOCKET_MESSAGE,
                heartbeat=heartbeat,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                ssl=self._tls,
            ) as socket,
        ):
            yield socket


async def pieces(response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
    """An answer, as it comes.

    Raises:
        BadAnswer: it has more than `most` bytes, and may have no end.
    """
    size = 0 if response.method == "HEAD" else response.content_length or 0
    if size <= most:
        size = 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > most:
                break
            yield piece
    if size > most:
        response.close()
        raise BadAnswer(f"an answer of more than {most} bytes", response.status)


async def whole(response: aiohttp.ClientResponse) -> bytes:
    """All of an answer, unless it is more than any ComfyUI answers.

    Raises:
        BadAnswer: it is.
    """
    return b"".join([piece async for piece in pieces(response, MAX_ANSWER)])


class _Redirected(aiohttp.ClientError):
    """The handshake was answered with a redirect: what a caller knows of a backend is not for where that leads."""


def _refusing_redirects() -> aiohttp.TraceConfig:
    async def refuse(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams) -> None:
        params.response.close()
        raise _Redirected

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config


def _parsed(path: str, answer: Answer) -> Any:
    if answer.status != 200:
        raise BadAnswer(f"GET {path} answered {answer.status}", answer.status)
    try:
        return wire.loads(answer.body)
    except wire.MalformedJson as error:
        raise BadAnswer(f"GET {path} did not answer JSON", answer.status) from error


def _items(items: Any) -> tuple[Sequence[Any], ...]:
    """Return those items of a queue that are of ComfyUI's form."""
    return tuple(item for item in items if isinstance(item, list) and len(item) >= 2 and isinstance(item[1], str))


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A history entry, and the encoder that keeps what JSON has no word for (NaN)."""

    entry: dict[str, Any]
    encode: Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class Queue:
    """A backend's /queue: items are ``[number, prompt_id, prompt, extra_data, outputs]``."""

    running: tuple[Sequence[Any], ...]
    pending: tuple[Sequence[Any], ...]

    @property
    def running_ids(self) -> frozenset[str]:
        """The prompt ids that run."""
        return frozenset(item[1] for item in self.running)

    @property
    def pending_ids(self) -> frozenset[str]:
        """The prompt ids that are pending."""
        return frozenset(item[1] for item in self.pending)


@asynccontextmanager
async def translated_errors() -> AsyncIterator[None]:
    """Turn aiohttp's errors into ours."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        raise translated(error) from error


def translated(error: Exception) -> BackendError:
    """What an error of aiohttp's says: was anything sent, and does anybody listen there? TimeoutError is an OSError.

    Its own text is not repeated where it may hold the backend's address: what comes of it may be shown to users.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "it is not the host's"
        return Unreachable(f"its certificate is not trusted: {reason}")
    if isinstance(error, aiohttp.ClientSSLError):
        return Unreachable("it does not speak TLS as it is expected to")
    if isinstance(error, aiohttp.ClientConnectorError):
        refused = isinstance(error.os_error, ConnectionRefusedError)
        return Refused("connection refused") if refused else Unreachable(error.os_error.strerror or "no connection")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Unreachable("no connection within the time limit")
    if isinstance(error, TimeoutError):
        return TimedOut("no answer within the time limit")
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return BadAnswer(f"/ws answered {error.status}", error.status)
    if isinstance(error, OSError) and error.strerror:
        return Unanswered(f"the connection broke: {error.strerror}")
    return Unanswered(f"the connection broke: {_PLAIN.get(type(error), type(error).__name__)}")


_PLAIN: dict[type[Exception], str] = {
    aiohttp.ServerDisconnectedError: "it was closed",
    aiohttp.ClientPayloadError: "the answer ended early",
    aiohttp.ClientResponseError: "the answer is not HTTP",
    _Redirected: "it redirects",
}
