"""Passing a request on to a backend and its answer back, as streams: memory does not grow with size."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from gateway.fleet.backend import Backend
from gateway.tenants.carriers import QUERY_PARAMETER
from gateway.web.parts import IDENTITY

# Between two neighbours alone (RFC 9110, section 7.6.1; Keep-Alive and Proxy-Connection by custom).
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Keys never go upstream. Origin and its kin would make ComfyUI refuse what the gateway has let in already.
_NOT_UPSTREAM = HOP_BY_HOP | {
    "authorization",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",
    "referer",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-user",
    "x-api-key",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
}
_NOT_DOWNSTREAM = HOP_BY_HOP | {"server", "date", "set-cookie"}
CHUNK = 2**18


def upstream_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers of a request that a backend may see."""
    named = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in _NOT_UPSTREAM and k.lower() not in named)


def downstream_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers of a backend's answer that a client may see."""
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in _NOT_DOWNSTREAM)


def upstream_query(request: web.Request) -> str:
    """The query without the key, with its ``?``; empty if there is none."""
    raw = request.rel_url.raw_query_string
    if raw and QUERY_PARAMETER in request.rel_url.query:
        raw = urlencode([(k, v) for k, v in request.rel_url.query.items() if k != QUERY_PARAMETER])
    return f"?{raw}" if raw else ""


async def relay(
    request: web.Request, upstream: aiohttp.ClientResponse, rename: tuple[str, str] | None = None
) -> web.StreamResponse:
    """Stream a backend's answer to the client; with `rename` (old, new) the file in it is called otherwise."""
    headers = downstream_headers(upstream.headers)
    if rename is not None and "Content-Disposition" in headers:
        old, new = (quoted(name) for name in rename)
        headers["Content-Disposition"] = headers["Content-Disposition"].replace(old, new)
    response = web.StreamResponse(status=upstream.status, headers=headers)
    request["streaming"] = True
    await response.prepare(request)
    if request.method != "HEAD":
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
    await response.write_eof()
    return response


async def send_whole(request: web.Request, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with bytes that are shared between answers; large ones piecewise, so that no reader gets a copy whole."""
    if len(body) <= CHUNK:
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    request["streaming"] = True
    await response.prepare(request)
    if request.method != "HEAD":
        for start in range(0, len(body), CHUNK):
            await response.write(memoryview(body)[start : start + CHUNK])
    await response.write_eof()
    return response


def quoted(filename: str) -> str:
    """A file name inside a quoted-string (RFC 9110, section 5.6.4)."""
    return filename.replace("\\", "\\\\").replace('"', '\\"')


async def forward(request: web.Request, backend: Backend, path: str) -> web.StreamResponse:
    """Pass a request on to a backend.

    Raises:
        BackendError: it did not answer.
    """
    data = request.content if request.can_read_body else None
    headers = upstream_headers(request.headers)
    identity = request.get(IDENTITY)
    if identity is None or (identity.isolated and not identity.is_admin):
        # The user of a ComfyUI that has several (--multi-user) is for those to choose who may see all of them.
        headers.popall("Comfy-User", None)
    async with backend.client.open(
        request.method, path + upstream_query(request), headers=headers, data=data
    ) as upstream:
        return await relay(request, upstream)
