"""Files from object storage: for their owner at /view, and for anybody who has a link that the gateway signed."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import AsyncIterator, Mapping

from aiohttp import web
from multidict import CIMultiDict

from gateway.artifacts.links import Verdict
from gateway.artifacts.object_store import StorageError
from gateway.comfy.client import Unanswered
from gateway.files.index import Stored
from gateway.web.guard.context import context_of
from gateway.web.http.base_path import link_prefix
from gateway.web.http.byte_ranges import select
from gateway.web.http.content_safety import defuse
from gateway.web.http.request_keys import MORE_HEADERS, STREAMING
from gateway.web.http.responses import no_file, problem
from gateway.web.routes.proxying import quoted

_EXPIRED = "links last for a time; read the job's entry again for a new one"
_FORGED = "it was changed on its way, or this gateway did not sign it"


def file_headers(filename: str, headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return the headers that ComfyUI sends with a file (server.py, view_image)."""
    content_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    sent = CIMultiDict({"Content-Type": content_type, "Content-Disposition": f'filename="{quoted(filename)}"'})
    defuse(sent, headers.get("Sec-Fetch-Dest"))
    return sent


async def serve(request: web.Request, filename: str, stored: Stored, *, is_by_link: bool = False) -> web.StreamResponse:
    """Answer with a stored file.

    If it `is_by_link`, a browser must ask again before it shows its copy, because the link ends, or the file may be
    deleted. Else a browser keeps a file that never changed for years.

    Raises:
        StorageError: the file can't be read, and nothing of the answer is out.
    """
    stored_files = context_of(request).engine.stored_files
    if stored_files is None:
        raise StorageError("other", "storage.url is not set any more")
    wanted = select(request.headers, stored.size, stored.digest, stored.stored_at / 1000)
    headers = file_headers(filename, request.headers)
    headers.update(wanted.headers)
    headers.update(request.get(MORE_HEADERS, {}))
    if is_by_link and headers.get("Cache-Control") == "private":
        headers["Cache-Control"] = "private, no-cache"
    response = web.StreamResponse(status=wanted.status, headers=headers)
    if request.method == "HEAD" or wanted.start == wanted.end:
        await response.prepare(request)
        await response.write_eof()
        return response
    chunks = stored_files.open(stored, wanted.start, wanted.end)
    try:
        # Read before the answer begins, so that a file that is gone has another answer.
        first = await anext(chunks, b"")
        request[STREAMING] = True
        await response.prepare(request)
        await _send(response, first, chunks, wanted.end - wanted.start)
    finally:
        await chunks.aclose()
    await response.write_eof()
    return response


async def _send(response: web.StreamResponse, first: bytes, chunks: AsyncIterator[bytes], size: int) -> None:
    """Send a body of a size.

    Raises:
        Unanswered: reading failed in the middle.
    """
    sent = len(first)
    await response.write(first)
    try:
        async for chunk in chunks:
            sent += len(chunk)
            await response.write(chunk)
    except StorageError as error:
        raise Unanswered(error.message) from error
    if sent != size:
        raise Unanswered(f"the object has {sent} bytes in place of {size}")


async def redirect(request: web.Request, stored: Stored) -> web.Response | None:
    """Answer ``?redirect=1`` with a signed URL of the original; None if there is none, so that the bytes are sent.

    HTTP libraries send X-API-Key on to the URL, so nobody is redirected who did not ask. A HEAD is not redirected,
    because the signature of a URL holds for GET alone.
    """
    stored_files = context_of(request).engine.stored_files
    is_asked = request.method == "GET" and request.rel_url.query.get("redirect") == "1"
    if not is_asked or stored_files is None or not stored_files.links.is_on:
        return None
    link = await stored_files.links.to_original(stored)
    if link is None:
        return None
    headers = {"Location": link.under(link_prefix(request)), "Cache-Control": "no-store"}
    return web.Response(status=302, headers=headers)


def unavailable() -> web.Response:
    """Return the refusal for a file that object storage can't give now."""
    details = "object storage can't give it; try again later"
    return problem(503, "storage_unavailable", "The file can't be read now", details, {"Retry-After": "5"})


async def get_stored(request: web.Request) -> web.StreamResponse:
    """Answer GET /gateway/stored/…: an object, for anybody who has a link that the gateway signed."""
    stored_files = context_of(request).engine.stored_files
    key = "/".join(request.match_info[part] for part in ("tenant", "job", "name"))
    query = request.rel_url.query
    if stored_files is None:
        return no_file()
    match stored_files.links.own.judge(key, query.get("expires", ""), query.get("signature", ""), time.time()):
        case Verdict.FORGED:
            return problem(403, "link_invalid", "This link is not valid", _FORGED)
        case Verdict.EXPIRED:
            return problem(403, "link_expired", "This link has expired", _EXPIRED)
    try:
        size = await stored_files.head(key)
        # An object never changes, so its name is its identity.
        name = request.match_info["name"]
        return no_file() if size is None else await serve(request, name, Stored(key, size, name), is_by_link=True)
    except StorageError as error:
        return no_file() if error.kind == "missing" else unavailable()
