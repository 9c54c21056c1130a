"""A body for each refusal: ComfyUI and aiohttp refuse much with a bare status, or with a line of text.

This is the last step before an answer is sent (connections.py), so each refusal of the gateway has a body. A backend's
answer passes as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.telemetry import logs
from gateway.web.http.base_path import shown_path
from gateway.web.http.request_ids import noted, request_id_of
from gateway.web.http.request_log import RequestLog
from gateway.web.http.responses import JSON_HEADERS, problem
from gateway.web.http.v2_errors import in_form

_log = logs.get("http")

# Set where a whole answer is a backend's.
FROM_BACKEND = "from_backend"
OPENAPI = "/gateway/openapi.json"
# Characters of a path, and of what a library says, that a refusal repeats.
MAX_SHOWN = 200

# By status: the error's type, its message, and the advice, in which {openapi} stands for a path.
_SAID: Mapping[int, tuple[str, str, str]] = {
    400: (
        "bad_request",
        "The request is not one that this route takes",
        "compare its query, its headers and its body with GET {openapi}",
    ),
    401: ("unauthorized", "A key is needed", "send it as X-API-Key"),
    403: ("forbidden", "This is not allowed", "name what lies in the caller's own folders, or use another key"),
    404: ("not_found", "There is nothing here by this name", "look at the path and the query; what is not the caller's "
          "answers so as well"),
    405: ("method_not_allowed", "Method Not Allowed", "use one of the methods that Allow names"),
    408: ("request_timeout", "The request comes too slowly", "send it again"),
    409: ("conflict", "It can't be done as things are", "look at what is there, then send it again"),
    412: ("precondition_failed", "The file is not the one that the request is about", "ask for it without If-Match"),
    413: ("body_too_large", "The request body is too large", "send less"),
    415: ("unsupported_media_type", "The body is of a type that is not taken here", "send JSON, or a form with a file"),
    416: ("range_not_satisfiable", "The file has no such part", "ask for a part that Content-Range allows"),
    417: ("expectation_failed", "The request expects what is not done here", "send no Expect, or 100-continue"),
    426: ("upgrade_required", "This route is a WebSocket", "open it with a WebSocket client"),
    500: ("gateway_error", "The gateway failed over this request", "its log says why; tell whoever runs it"),
    502: ("backend_unavailable", "The backend did not answer", "send the request again later"),
    503: ("unavailable", "This can't be answered now", "send the request again later"),
    504: ("timeout", "It took too long", "send the request again later"),
}  # fmt: skip
# A browser fetches these for a page, and complains of JSON in their place on the page's console (W3C, Fetch Metadata).
_OF_PAGES = frozenset({"style", "script", "image", "font", "audio", "video", "track", "manifest"})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_REST = ("error", "The request is refused", "GET {openapi} tells what each route takes")


def _lines(status: int, openapi: str = OPENAPI) -> tuple[str, str, str]:
    type_, message, advice = _SAID.get(status) or (_SAID[400] if status < 500 else _REST)
    return type_, message, advice.replace("{openapi}", openapi)


def with_body(request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
    """Return an answer; if it is a refusal without a body, add one."""
    if (
        response.status < 400
        or not isinstance(response, web.Response)
        or response.body
        or response.prepared
        or request.method == "HEAD"
        or request.get(FROM_BACKEND)
        or request.headers.get("Sec-Fetch-Dest") in _OF_PAGES
    ):
        return response
    type_, message, advice = _lines(response.status, shown_path(request, OPENAPI))
    if response.reason not in ("", _PHRASES.get(response.status)):
        # ComfyUI gives its reason there, if it gives any (app/user_manager.py).
        message = response.reason
    response.headers.update(JSON_HEADERS)
    response.body = json_codec.dumps(error_body(type_, message, f"{_shown(request)}: {advice}"))
    return response


def of_exception(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """Return the answer that an exception of aiohttp's stands for.

    An exception that aiohttp answers is in a circle with its traceback, which leads to the request and its connection:
    they would stay until the next collection, and that would take long if a stranger caused thousands.
    """
    if error.status < 400:
        return web.Response(status=error.status, reason=error.reason, headers=error.headers, body=error.body)
    type_, message, advice = _lines(error.status, shown_path(request, OPENAPI))
    is_default = error.text == f"{error.status}: {error.reason}"
    told = advice if is_default or not error.text else " ".join(error.text.split())[:MAX_SHOWN]
    kept = {name: value for name, value in error.headers.items() if not name.lower().startswith("content-")}
    return problem(error.status, type_, message, f"{_shown(request)}: {told}", kept)


def _shown(request: web.BaseRequest) -> str:
    # Without its query, which may hold a key.
    return f"{request.method} {shown_path(request, request.path[:MAX_SHOWN])}"


class Protocol(web.RequestHandler):
    """aiohttp's protocol, with errors in JSON for unreadable requests and failed handlers.

    Args:
        server: aiohttp's server.
        http_log: has a line of each request that is not HTTP.
    """

    __slots__ = ("_http_log", "unread_path")

    def __init__(self, server: web.Server, http_log: RequestLog) -> None:
        super().__init__(server, loop=server._loop, **server._kwargs)
        self._http_log = http_log
        # The path of a request that could not be read, because aiohttp makes another request in its place.
        self.unread_path: str | None = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Log an error, and return its answer. The connection is closed after it.

        Raises:
            ConnectionError: an answer has begun.
        """
        type_, said, details = _lines(status)
        if isinstance(exc, HttpProcessingError):
            # Anybody sends such by the thousand. The lines after the first repeat what came, which may be anything.
            type_, said = "malformed_request", "The request is not taken"
            details = (message or exc.message).split("\n", 1)[0].strip(" :")[:MAX_SHOWN] or "it is not HTTP"
            details = f"{details}; send HTTP/1.1"
        else:
            error = repr(exc) if exc is not None else said
            _log.error("request_failed", request_id=request_id_of(request), status=status, error=error, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, so no other can be sent")
        if self._http_log.is_on and not noted(request).is_logged:
            self._http_log.write(request, status, 0.0)
        path = self.unread_path if isinstance(exc, HttpProcessingError) else None
        response = in_form(request, problem(status, type_, said, details), path)
        response.force_close()
        return response
