"""HTTP connections to backends that count their bytes."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler

from gateway.telemetry.traffic import Traffic


class _Protocol(ResponseHandler):
    """Protocol of one connection."""

    def __init__(self, traffic: Traffic, **more: Any) -> None:
        super().__init__(**more)
        self._traffic = traffic

    def data_received(self, data: bytes) -> None:
        """Count received bytes, and pass them on."""
        self._traffic.from_backends += len(data)
        super().data_received(data)


def counting_session(traffic: Traffic) -> aiohttp.ClientSession:
    """Return the session for all backends, without cookies."""
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=30)
    # aiohttp has no parameter for it (aiohttp/connector.py, BaseConnector.__init__).
    connector._factory = cast(Any, partial(_Protocol, traffic, loop=connector._loop))

    class Request(aiohttp.ClientRequest):
        async def write_bytes(self, writer: AbstractStreamWriter, conn: Any, content_length: int | None = None) -> None:
            try:
                await super().write_bytes(writer, conn, content_length)
            finally:
                traffic.to_backends += writer.output_size

    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=2**16, request_class=Request
    )
