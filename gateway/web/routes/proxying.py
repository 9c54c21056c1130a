"""Passing a request on to a backend and its answer back, as streams: memory does not grow with size."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, MultiMapping
from yarl import URL

from gateway.comfy.client import Unanswered
from gateway.comfy.png_texts import Patch, patched_part
from gateway.fleet.backend import Backend
from gateway.tenants.credentials import QUERY_PARAMETER
from gateway.web.guard.context import context_of
from gateway.web.guard.cross_origin import READS
from gateway.web.http import content_safety
from gateway.web.http.base_path import link_prefix
from gateway.web.http.client_address import parse_address
from gateway.web.http.content_safety import defuse, guard_page
from gateway.web.http.request_body import stream_body
from gateway.web.http.request_keys import IDENTITY, MORE_HEADERS, OWN_ERRORS, STREAMING
from gateway.web.http.responses import no_answer, no_file

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

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
# Keys never go upstream. Origin and similar headers would make ComfyUI refuse requests that the gateway has admitted.
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
    "x-real-ip",
    "x-request-id",
}
# What proxies add holds the URL as it was asked for, and that may hold a key.
_PROXIES_OWN = ("x-forwarded-", "x-original-", "x-rewrite-")
# Some servers read Content_Length as Content-Length (CGI's variables can't tell them apart).
_NOT_SPELLED = _NOT_UPSTREAM | {"content-length", "content-type"}
# What is said of the whole host is the gateway's to say; a challenge would be for the gateway's own password. A proxy
# before the gateway takes X-Accel-Redirect and its kin for orders: to send a file of its own, or to cache the answer.
_NOT_DOWNSTREAM = HOP_BY_HOP | {
    "alt-svc",
    "clear-site-data",
    "content-location",
    "date",
    "location",
    "refresh",
    "server",
    "service-worker-allowed",
    "set-cookie",
    "strict-transport-security",
    "via",
    "www-authenticate",
    "x-powered-by",
    "x-request-id",
}
# X-Accel-Buffering is no order: a custom node that streams says so with it.
_ORDERS = ("x-accel-", "x-sendfile", "x-reproxy-", "x-lighttpd-", "x-litespeed-", "surrogate-", "edge-", "cdn-")
_NO_ORDER = "x-accel-buffering"
_CORS = "access-control-"
_OF_A_BODY = ("Content-Length", "Content-Type", "Content-Encoding")
CHUNK = 2**18
# Bytes of an answer that is read before it is passed on, because it may name ids.
MAX_SHORT = 2**16
_LENGTH = re.compile(r"\d{1,18}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-")


def upstream_headers(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """Return the headers of a request that a backend may see."""
    named = _named_by_connection(headers)
    return CIMultiDict((name, value) for name, value in headers.items() if _may_pass(name.lower(), named))


def _may_pass(name: str, named: set[str]) -> bool:
    if name in _NOT_UPSTREAM or name in named:
        return False
    spelled = name.replace("_", "-")
    return not (spelled.startswith(_PROXIES_OWN) or (spelled != name and spelled in _NOT_SPELLED))


def downstream_headers(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """Return the headers of a backend's answer that a client may see."""
    named = _named_by_connection(headers)
    return CIMultiDict(
        (k, v)
        for k, v in headers.items()
        if (name := k.lower()) not in _NOT_DOWNSTREAM and name not in named and not name.startswith(_CORS)
        if name == _NO_ORDER or not name.replace("_", "-").startswith(_ORDERS)
    )


def _named_by_connection(headers: MultiMapping[str]) -> set[str]:
    """Return the headers that Connection names, because they are for one hop alone (RFC 9110, section 7.6.1)."""
    if "Connection" not in headers:
        return set()
    # Split the header in one go, because a stranger may name thousands.
    tokens = ",".join(headers.getall("Connection")).lower()
    return set(tokens.replace(" ", "").replace("\t", "").split(","))


def shown_location(location: str, asked: URL, base: URL) -> str | None:
    """Return the target of a backend's redirect for clients; None if clients must not see it.

    Args:
        location: the Location header.
        asked: the URL that the gateway requested from the backend.
        base: the backend's own URL.
    """
    try:
        target = asked.join(URL(location, encoded=True))
    except ValueError:
        return None
    if target.scheme not in ("http", "https"):
        return None
    if target.host is not None and target.origin() == base.origin():
        path = "/" + target.raw_path.removeprefix(base.raw_path.rstrip("/")).lstrip("/")
        return path + (f"?{target.raw_query_string}" if target.raw_query_string else "")
    host = target.host or ""
    is_public = "." in host and parse_address(host) is None and host != base.host
    return location if is_public else None


def upstream_query(request: web.Request) -> str:
    """Return the query without the key, with its ``?``; empty if there is none."""
    raw = request.rel_url.raw_query_string
    if raw and QUERY_PARAMETER in request.rel_url.query:
        raw = urlencode([(k, v) for k, v in request.rel_url.query.items() if k != QUERY_PARAMETER])
    return f"?{raw}" if raw else ""


async def relay(
    request: web.Request,
    upstream: aiohttp.ClientResponse,
    rename: tuple[str, str] | None = None,
    *,
    is_callers: bool = True,
    is_style: bool = False,
    patches: Sequence[Patch] = (),
    chunks: AsyncIterator[bytes] | None = None,
) -> web.StreamResponse:
    """Stream a backend's answer to the client; with `rename` (old, new) change the file's name in its headers.

    `patches` replace bytes of the file, of which the answer may be one part. If it `is_callers`, some caller made the
    file, and browsers must not run it; if it `is_style` as well, it may be a style sheet all the same. `chunks` are
    sent in place of the answer's own. A refusal is not passed on if the request has `OWN_ERRORS`.
    """
    if upstream.status >= 400 and request.get(OWN_ERRORS):
        return no_file() if upstream.status == 404 else no_answer()
    headers = downstream_headers(upstream.headers)
    if is_callers:
        defuse(headers, request.headers.get("Sec-Fetch-Dest"), is_style=is_style)
    else:
        guard_page(headers, context_of(request).settings.cors.origins)
    if rename is not None and "Content-Disposition" in headers:
        old, new = (quoted(name) for name in rename)
        headers["Content-Disposition"] = headers["Content-Disposition"].replace(old, new)
    if "Location" in upstream.headers:
        asked, known = upstream.url, (backend.url for backend in context_of(request).fleet.backends.values())
        base = next((url for url in known if str(asked).startswith(url + "/")), str(asked.origin()))
        location = shown_location(upstream.headers["Location"], asked, URL(base))
        if location is not None:
            # A path is one of the backend, so it needs the prefix that clients see.
            headers["Location"] = link_prefix(request) + location if location.startswith("/") else location
    if not _LENGTH.fullmatch(",".join(headers.getall("Content-Length", ()))):
        headers.popall("Content-Length", None)
    headers.update(request.get(MORE_HEADERS, {}))
    response = web.StreamResponse(status=upstream.status, headers=headers)
    request[STREAMING] = True
    await response.prepare(request)
    if request.method != "HEAD":
        offset, sent = _offset_of(upstream), 0
        async for chunk in upstream.content.iter_any() if chunks is None else chunks:
            told = patched_part(patches, chunk, offset)
            offset += len(chunk)
            sent += len(chunk)
            await response.write(told)
        told_length = response.content_length
        if told_length is not None and sent != told_length and upstream.status not in (204, 304):
            raise Unanswered(f"the answer has {sent} bytes, and said {told_length}")
    await response.write_eof()
    return response


async def replacing(chunks: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """Yield a stream with another id of equal length in an id's place, also if that lies in two chunks."""
    held = b""
    async for chunk in chunks:
        data = (held + chunk).replace(old, new)
        keep = len(old) - 1
        held = data[-keep:]
        if len(data) > keep:
            yield data[:-keep]
    if held:
        yield held


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


def _offset_of(upstream: aiohttp.ClientResponse) -> int:
    """Return the place in its file at which an answer begins (RFC 9110, section 14.4)."""
    match = _CONTENT_RANGE.match(upstream.headers.get("Content-Range", "")) if upstream.status == 206 else None
    return int(match[1]) if match is not None else 0


async def send_whole(request: web.Request, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with bytes that are shared between answers; large ones piecewise, so that no reader gets a copy whole."""
    if len(body) <= CHUNK:
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    request[STREAMING] = True
    await response.prepare(request)
    if request.method != "HEAD":
        for start in range(0, len(body), CHUNK):
            await response.write(memoryview(body)[start : start + CHUNK])
    await response.write_eof()
    return response


async def send_pieces(request: web.Request, pieces: Iterable[bytes], headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with what is put together as it is sent, where it is long: memory and the loop are others', too."""
    response: web.StreamResponse | None = None
    taken, size = [], 0
    for piece in pieces:
        taken.append(piece)
        size += len(piece)
        if size > CHUNK:
            if response is None:
                response = web.StreamResponse(headers=headers)
                request[STREAMING] = True
                await response.prepare(request)
            if request.method == "HEAD":
                return response
            await response.write(b"".join(taken))
            # A write to a reader that keeps up does not wait.
            await asyncio.sleep(0)
            taken, size = [], 0
    if response is None:
        return web.Response(body=b"".join(taken), headers=headers)
    if taken:
        await response.write(b"".join(taken))
    await response.write_eof()
    return response


def quoted(filename: str) -> str:
    """Return a file name for a quoted-string (RFC 9110, section 5.6.4), without characters that end a header."""
    return _CONTROL.sub("_", filename).replace("\\", "\\\\").replace('"', '\\"')


async def forward(
    request: web.Request,
    backend: Backend,
    path: str,
    *,
    body: bytes | None = None,
    renames: tuple[str, str] | None = None,
    read: Callable[[bytes], None] | None = None,
) -> web.StreamResponse:
    """Pass a request on to a backend.

    Args:
        body: the request's body, if it is read already.
        renames: an id of the client's, and the one of equal length that the backend has in its place.
        read: called after a success, with the body of a short answer; with nothing if the answer is long.

    Raises:
        BackendError: the backend did not answer.
    """
    data: Any = body if body is not None else None if request.method in READS else stream_body(request)
    query = upstream_query(request)
    headers = upstream_headers(request.headers)
    if renames is not None:
        path, query = path.replace(*renames), query.replace(*renames)
        data = _replaced(body, *renames) if body is not None else data
        # Ask for an answer that is not packed, because it may name the backend's id.
        headers["Accept-Encoding"] = "identity"
    if request.method in READS:
        # Don't pass the body and its headers on, because nothing reads the body of a GET (RFC 9110, section 9.3.1).
        for name in _OF_A_BODY:
            headers.popall(name, None)
    identity = request.get(IDENTITY)
    if identity is None or (identity.isolated and not identity.is_admin):
        # If a ComfyUI has several users (--multi-user), only callers that may see all of them may choose one.
        headers.popall("Comfy-User", None)
    async with backend.client.open(request.method, path + query, headers=headers, data=data) as upstream:
        answer = await _short_answer(upstream) if read is not None else None
        if read is not None and upstream.status < 300:
            read(answer or b"")
        chunks = upstream.content.iter_any() if answer is None else _whole(answer)
        if renames is not None:
            chunks = replacing(chunks, *(id_.encode() for id_ in reversed(renames)))
        is_callers = content_safety.is_callers(request.path) or "filename" in request.rel_url.query
        is_style = content_safety.is_style(request.path)
        return await relay(request, upstream, is_callers=is_callers, is_style=is_style, chunks=chunks)


def _replaced(data: bytes, old: str, new: str) -> bytes:
    return data.replace(old.encode(), new.encode())


async def _short_answer(upstream: aiohttp.ClientResponse) -> bytes | None:
    """Read an answer that is short and not compressed; None if it is not, and nothing of it is read."""
    length = upstream.headers.get("Content-Length", "")
    if not _LENGTH.fullmatch(length) or int(length) > MAX_SHORT or "Content-Encoding" in upstream.headers:
        return None
    return await upstream.read()
