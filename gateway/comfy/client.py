"""The HTTP interface of one ComfyUI, with errors that tell whose fault it is, and if anything was sent."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import aiohttp
from multidict import MultiMapping
from yarl import URL

from gateway.comfy import json_codec
from gateway.comfy.backend_errors import (
    BackendError,
    BadAnswer,
    Redirected,
    Refused,
    TimedOut,
    Unanswered,
    Unreachable,
    UnreadableEntry,
    translated,
    translated_errors,
)
from gateway.comfy.json_stream import JsonStream, TooLarge
from gateway.comfy.response_bodies import MAX_ANSWER, checked, pieces, whole
from gateway.comfy.responses import (
    HistoryEntry,
    Queue,
    SystemStats,
    read_history_entry,
    read_large_history_entry,
    read_large_queue,
    read_queue,
    read_system_stats,
)

__all__ = [
    "MAX_ANSWER",
    "MAX_OBJECT_INFO",
    "MAX_REPLY",
    "MAX_SOCKET_MESSAGE",
    "Access",
    "Answer",
    "BackendError",
    "BadAnswer",
    "ComfyClient",
    "Refused",
    "TimedOut",
    "Unanswered",
    "Unreachable",
    "UnreadableEntry",
    "pieces",
    "whole",
]

_T = TypeVar("_T")

# ComfyUI itself does not limit the size of a message. Pictures as results, of some 10 MB, are seen.
MAX_SOCKET_MESSAGE = 64 * 2**20
# Maximum bytes of answers, unpacked, by their kinds. The first is for an answer that is read as it comes.
MAX_STREAM = 256 * 2**20
# A history entry may have so many beside its result: its graph, and outputs that are left out.
MAX_PASSED = 64 * 2**20
MAX_STATS = 256 * 2**10
# A refusal lists the choices of each input that it refuses.
MAX_REPLY = 8 * 2**20
# The /object_info of a large installation has some 10 MB; one of 100 MB was seen.
MAX_OBJECT_INFO = 128 * 2**20
# An answer of so many bytes is parsed in one piece, whatever is in it. A larger one is read as it comes.
SMALL_ANSWER = 2**17
_UNPACKED = {"Accept-Encoding": "identity"}
# Bytes of a job's result, beside its graph, unless the settings say otherwise.
MAX_RESULT = 64 * 2**20


# A socket whose text messages come as bytes.
Socket = aiohttp.ClientWebSocketResponse[Literal[False]]


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and TLS that one backend wants of its callers: the value of Authorization, and a TLS context."""

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
        access: the credentials and TLS that this ComfyUI, or a proxy before it, wants of its callers.
        max_result: bytes of a history entry beside its graph; outputs past that are left out.
    """

    def __init__(
        self,
        base: str,
        session: aiohttp.ClientSession,
        connect_timeout: float = 3.0,
        timeout: float = 5.0,
        access: Access = Access(),
        max_result: int = MAX_RESULT,
    ) -> None:
        self.base = base
        self._session = session
        self._authorization = {"Authorization": access.authorization} if access.authorization else {}
        self._tls: ssl.SSLContext | bool = access.tls or True
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._max_result = max_result
        self._prompt_url = self.url("/prompt")

    def url(self, path_qs: str) -> URL:
        """Return the address of a path, which is taken as encoded."""
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
        maximum: int = MAX_ANSWER,
    ) -> Answer:
        """Send a request, and return its whole answer of up to `maximum` bytes, whatever its status.

        Raises:
            Unreachable, Unanswered: see there.
            BadAnswer: it has more, or is no answer that a client may be given.
        """
        try:
            async with self._ask(method, path, body, timeout, headers) as response:
                return Answer(response.status, response.headers, await whole(checked(response), maximum))
        except (aiohttp.ClientError, OSError) as error:
            raise translated(error) from error

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float | None,
        headers: Mapping[str, str] | None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        total = self._timeout if timeout == -1 else timeout
        sent_headers = {"Content-Type": "application/json"} if body is not None else {}
        sent_headers.update(headers or {})
        sent_headers.update(self._authorization)
        return self._session.request(
            method,
            self._prompt_url if path == "/prompt" else self.url(path),
            data=body,
            headers=sent_headers,
            timeout=self.limit(total),
            allow_redirects=False,
            auto_decompress=False,
            ssl=self._tls,
        )

    async def _read(
        self,
        path: str,
        timeout: float | None,
        small: Callable[[bytes], _T],
        large: Callable[[JsonStream], Awaitable[_T]],
        maximum: int = MAX_STREAM,
    ) -> _T:
        """GET a path and read the answer: `small` ones whole, `large` ones as they come.

        Raises:
            BadAnswer: it was not 200.
            Unreadable: it was not read.
        """
        # Little may unpack to much, and this is asked again and again.
        async with translated_errors(), self._ask("GET", path, None, timeout, _UNPACKED) as answered:
            response = checked(answered)
            if response.status != 200:
                raise BadAnswer(f"GET {path} answered {response.status}", response.status)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise BadAnswer(f"GET {path} answered in a coding that was not asked for", 200)
            first, size = [], 0
            source = pieces(response, MAX_STREAM)
            async for piece in source:
                first.append(piece)
                size += len(piece)
                if size > SMALL_ANSWER:
                    try:
                        return await large(JsonStream(_chained(first, source), maximum))
                    except TooLarge as error:
                        error.size = max(error.size, response.content_length or 0)
                        raise
            return small(b"".join(first))

    async def queue(self) -> Queue:
        """GET /queue. Of a large one the graphs are not read.

        Raises:
            BadAnswer: it is no queue.
        """
        try:
            return await self._read("/queue", -1, lambda body: read_queue(json_codec.loads(body)), read_large_queue)
        except ValueError as error:
            raise BadAnswer(f"GET /queue did not answer as ComfyUI does: {error}", 200) from error

    async def object_info(self, timeout: float) -> list[bytes]:
        """GET /object_info: the answer in pieces, because a thread has to join a long one.

        Raises:
            BadAnswer: it was not 200, or has more than is read.
        """
        async with translated_errors(), self._ask("GET", "/object_info", None, timeout, None) as answered:
            response = checked(answered)
            if response.status != 200:
                raise BadAnswer(f"GET /object_info answered {response.status}", response.status)
            found, last = [], bytearray()
            async for piece in pieces(response, MAX_OBJECT_INFO):
                # An answer that comes byte by byte takes no more memory than any other.
                last += piece
                if len(last) >= SMALL_ANSWER:
                    found.append(bytes(last))
                    last.clear()
            return [*found, bytes(last)]

    async def system_stats(self) -> SystemStats:
        """GET /system_stats.

        Raises:
            BadAnswer: it has none.
        """
        answer = await self.call("GET", "/system_stats", maximum=MAX_STATS, headers=_UNPACKED)
        if answer.status != 200:
            raise BadAnswer(f"GET /system_stats answered {answer.status}", answer.status)
        try:
            return read_system_stats(json_codec.loads(answer.body))
        except ValueError as error:
            raise BadAnswer(f"GET /system_stats did not answer as ComfyUI does: {error}", 200) from error

    async def history_entry(self, prompt_id: str, *, timeout: float | None = -1) -> HistoryEntry | None:
        """GET /history/{prompt_id}: the entry, None if there is none. The graph of a large one is not read.

        Raises:
            UnreadableEntry: it can't be read.
        """

        def small(body: bytes) -> HistoryEntry | None:
            return read_history_entry(json_codec.loads(body), prompt_id, body)

        async def large(document: JsonStream) -> HistoryEntry | None:
            return await read_large_history_entry(document, prompt_id, self._max_result)

        try:
            maximum = self._max_result + MAX_PASSED
            return await self._read(f"/history/{prompt_id}", timeout, small, large, maximum)
        except TooLarge as error:
            bounds = f"its result may have {self._max_result} (history.max_result), the rest {MAX_PASSED}"
            reason = f"its history entry is too large: {error.size} bytes or more; {bounds}"
            raise UnreadableEntry(reason, is_final=True) from error
        except ValueError as error:
            raise UnreadableEntry(f"its history entry can't be read: {error}", is_final=False) from error

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
        """POST /free: unload all models, and free memory and cached results, after the running prompt (main.py)."""
        await self._order("/free", {"unload_models": True, "free_memory": True})

    async def _order(self, path: str, body: dict[str, Any]) -> None:
        answer = await self.call("POST", path, json_codec.dumps(body))
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
        """Send a request, and yield its answer as a stream, bytes as they are (nothing is decompressed).

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
            yield checked(response)

    @asynccontextmanager
    async def socket(self, client_id: str, heartbeat: float = 20.0) -> AsyncIterator[Socket]:
        """Connect to this ComfyUI's /ws as `client_id`. `heartbeat` is the time between pings, in seconds."""
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
                decode_text=False,
                heartbeat=heartbeat,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                ssl=self._tls,
            ) as socket,
        ):
            yield socket


async def _chained(first: Iterable[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in first:
        yield piece
    async for piece in rest:
        yield piece


def _refusing_redirects() -> aiohttp.TraceConfig:
    async def refuse(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestRedirectParams) -> None:
        params.response.close()
        raise Redirected

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(refuse)
    return config
