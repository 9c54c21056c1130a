"""Ids of requests: the caller's own, from X-Request-Id, or one that the gateway makes.

`NotedRequest` has the id, and gives each answer the header. Log lines about a request, and about a job that it made,
name the id. No backend hears of it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from multidict import istr

from gateway.web.http.base_path import without_base_path

HEADER = istr("X-Request-Id")
# Characters of a caller's id. It stands in headers, log lines and the journal.
MAX_LENGTH = 128
_WELL_FORMED = re.compile(rf"[A-Za-z0-9._:+/=-]{{1,{MAX_LENGTH}}}")
# Digits of an id that is made, and how many are made at once, because a call of the operating system costs more.
_DIGITS = 32
_AT_ONCE = 128
_made: list[str] = []


def new_request_id() -> str:
    """Return an id for a request whose caller gave none. It tells nothing of how many requests there are."""
    if not _made:
        digits = os.urandom(_AT_ONCE * _DIGITS // 2).hex()
        _made.extend(digits[start : start + _DIGITS] for start in range(0, len(digits), _DIGITS))
    return _made.pop()


def request_id_from(given: str | None) -> str:
    """Return a caller's id if it is well formed, else a new one."""
    if given is not None and _WELL_FORMED.fullmatch(given) is not None:
        return given
    return new_request_id()


class NotedRequest(web.BaseRequest):
    """A request with an id, which its answer names, however it is sent.

    `prompt_ids` are the jobs that it makes or names, for its log line; it `is_logged` once that is written.
    """

    ATTRS = web.BaseRequest.ATTRS | {"_request_id", "prompt_ids", "is_logged"}
    _request_id = ""
    prompt_ids: tuple[str, ...] = ()
    is_logged = False

    @property
    def request_id(self) -> str:
        """Return its id, made when it is first asked for."""
        if not self._request_id:
            given = self._headers.get(HEADER)
            # Nearly all clients give none.
            self._request_id = new_request_id() if given is None else request_id_from(given)
        return self._request_id

    def _prepare_hook(self, response: web.StreamResponse) -> Coroutine[Any, Any, None]:
        # What a backend says of such an id is replaced.
        response.headers[HEADER] = self.request_id
        return web.BaseRequest._prepare_hook(self, response)


class RoutedRequest(NotedRequest, web.Request):
    """The same, of an application."""

    ATTRS = NotedRequest.ATTRS | web.Request.ATTRS

    def _prepare_hook(self, response: web.StreamResponse) -> Coroutine[Any, Any, None]:
        # The headers for pages of other origins come after it, because they expose those that are there.
        response.headers[HEADER] = self.request_id
        return web.Request._prepare_hook(self, response)


def noted(request: web.BaseRequest) -> NotedRequest:
    """Return a request as what it is: the gateway's servers make no others."""
    return cast(NotedRequest, request)


def request_id_of(request: web.BaseRequest) -> str:
    """Return the id of a request."""
    return noted(request).request_id


def plain_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> NotedRequest:
    """Return a request of a server without an application, as aiohttp makes it."""
    return NotedRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


def requests_of(app: web.Application, base_path: str = "") -> Callable[..., RoutedRequest]:
    """Return what makes the requests of an application, as aiohttp makes them, but without the prefix `base_path`."""

    def make(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> RoutedRequest:
        if base_path:
            message = without_base_path(message, base_path)
        request = app._make_request(message, payload, protocol, writer, task, RoutedRequest)
        return cast(RoutedRequest, request)

    return make


def head_line(request_id: str) -> bytes:
    """Return the header line for an answer that is written in bytes."""
    return f"{HEADER}: {request_id}\r\n".encode()
