"""Asking a ComfyUI, or a gateway, the suite's questions. Reads only: nothing is queued, changed or deleted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from gateway.comfy import json_codec
from gateway.comfy.client import Answer, BackendError, ComfyClient, TimedOut, Unanswered
from gateway.conformance.suite import (
    Exchange,
    Suite,
    Verdict,
    differs,
    is_flags,
    judge,
    judge_greeting,
    no_socket,
    version_of,
)

# An installation with many custom nodes has an /object_info of 100 MB.
MAX_BODY = 128 * 1024 * 1024
CONNECT_TIMEOUT = 10.0
_CHUNK = 256 * 1024
_FIRST = "/system_stats"
_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class CannotAsk(Exception):
    """Failure to examine a ComfyUI: nobody answers there, or a key is needed."""


@dataclass(slots=True)
class Examination:
    """Examination of one ComfyUI.

    Args:
        url: its address, without a slash at the end.
        key: sent as ``X-API-Key`` with every request, if there is one.
        timeout: seconds for each request and its whole answer.
        maximum: bytes of an answer that are read; a longer answer counts as a difference.
    """

    suite: Suite
    url: str
    key: str | None = field(repr=False)
    timeout: float
    maximum: int = MAX_BODY
    version: str = ""

    async def verdicts(self) -> AsyncIterator[Verdict]:
        """Ask one question after the other, and yield the lines of the report.

        Raises:
            CannotAsk: nobody answers the first question, or a key is needed.
        """
        headers = {"Accept-Encoding": "identity"} | ({"X-API-Key": self.key} if self.key else {})
        async with aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as session:
            client = ComfyClient(self.url, session, min(CONNECT_TIMEOUT, self.timeout))
            first = await self._first(client)
            for exchange in self.suite.exchanges:
                for verdict in await self._ask(client, exchange, first):
                    yield verdict
            yield await self._greet(client)

    async def _first(self, client: ComfyClient) -> Answer:
        try:
            answer = await self._get(client, _FIRST)
        except BackendError as error:
            raise CannotAsk(f"{self.url} can't be asked: {error}") from error
        if answer.status in (401, 403):
            given = "the key that was given is not accepted there" if self.key else "it needs a key; add --api-key KEY"
            raise CannotAsk(f"{self.url} answers {answer.status}: {given}")
        self.version = version_of(answer)
        return answer

    async def _ask(self, client: ComfyClient, exchange: Exchange, first: Answer) -> list[Verdict]:
        try:
            answer = first if exchange.path == _FIRST else await self._get(client, exchange.path)
        except BackendError as error:
            return [differs(exchange.name, f"expected an answer: {error}")]
        return judge(self.suite, exchange, answer)

    async def _get(self, client: ComfyClient, path: str) -> Answer:
        """GET a path.

        Raises:
            BackendError: there was no whole answer within the limits of time and size.
        """
        with _in_time():
            async with asyncio.timeout(self.timeout), client.open("GET", path, sock_read=None) as response:
                parts, size = [], 0
                async for part in response.content.iter_chunked(_CHUNK):
                    parts.append(part)
                    size += len(part)
                    if size > self.maximum:
                        raise Unanswered(f"the answer has more than {self.maximum} bytes")
                return Answer(response.status, response.headers, b"".join(parts))

    async def _greet(self, client: ComfyClient) -> Verdict:
        """Connect /ws, declare flags as the web UI does, and hear until they are answered."""
        client_id = str(uuid.uuid4())
        messages: list[Any] = []
        try:
            with _in_time():
                async with asyncio.timeout(self.timeout), client.socket(client_id) as socket:
                    await socket.send_json(_FLAGS)
                    async for message in socket:
                        told = _parsed(message.data) if message.type is aiohttp.WSMsgType.TEXT else None
                        if not messages or is_flags(told):
                            messages.append(told)
                        if is_flags(told):
                            break
        except TimedOut:
            # What had come by then is judged.
            pass
        except BackendError as error:
            return no_socket(error)
        return judge_greeting(self.suite, client_id, messages)


@contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise TimedOut("no whole answer within the time limit") from error


def _parsed(text: str) -> Any:
    try:
        return json_codec.loads(text)
    except json_codec.MalformedJson:
        return None
