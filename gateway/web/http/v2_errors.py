"""Errors of the Comfy API v2: ``{"error": {"code", "message", "details"}}`` for each refusal below /api/v2.

The gateway refuses in ComfyUI's form. The last step before an answer is sent puts a refusal below /api/v2 into the
form of that API, so that no refusal of the gate or of the server escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.tenants.roles import MANAGER
from gateway.web.http.request_ids import head_line, request_id_of
from gateway.web.http.responses import JSON_HEADERS

PREFIX = "/api/v2"
# First parts of paths below /api/v2 that are ComfyUI's own, or ComfyUI-Manager's.
COMFYUIS = ("userdata", *MANAGER)
# The SDK shows the id of this header with an error.
REQUEST_ID = "X-Comfy-Request-Id"
_CODES: Mapping[int, str] = {
    400: "invalid_request",
    401: "unauthorized",
    402: "insufficient_credits",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "invalid_request",
    413: "payload_too_large",
    415: "invalid_request",
    416: "range_not_satisfiable",
    417: "invalid_request",
    422: "invalid_request",
    429: "rate_limited",
    500: "upstream_error",
    502: "upstream_error",
    503: "upstream_unreachable",
    504: "upstream_unreachable",
    505: "invalid_request",
    507: "storage_full",
}
# Codes by the type of a refusal in ComfyUI's form.
_BY_TYPE = {"foreign_origin": "forbidden_origin", "unknown_host": "forbidden_origin"}
# Characters of a message.
MAX_MESSAGE = 1_000


class V2Error(Exception):
    """Refusal of a request of the Comfy API v2: its status, code, message, details and headers."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details
        self.headers = headers or {}

    def response(self) -> web.Response:
        """Return the answer."""
        return refusal(self.status, self.code, str(self), self.details, self.headers)


def is_v2(path: str) -> bool:
    """Return True if a path is one of the Comfy API v2, and not ComfyUI's own below /api/v2."""
    if path == PREFIX:
        return True
    return path.startswith(PREFIX + "/") and path[len(PREFIX) + 1 :].partition("/")[0] not in COMFYUIS


def refusal(
    status: int,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return a refusal in the form of the Comfy API v2."""
    error = {"code": code, "message": message[:MAX_MESSAGE], "details": details}
    body = json_codec.dumps({"error": error})
    return web.Response(body=body, status=status, headers={**JSON_HEADERS, **(headers or {})})


def in_form(request: web.BaseRequest, response: web.StreamResponse, path: str | None = None) -> web.StreamResponse:
    """Return an answer; below /api/v2 in the form of that API, if it is a refusal.

    Args:
        path: the path of a request that could not be read; None: that of `request`.
    """
    if response.status < 400 or response.prepared or not is_v2(request.path if path is None else path):
        return response
    response.headers[REQUEST_ID] = request_id_of(request)
    if isinstance(response, web.Response) and response.status != 499:
        error = _error_of(response.body)
        if "code" not in error:
            response.headers.update(JSON_HEADERS)
            response.headers.popall("Content-Length", None)
            response.body = json_codec.dumps({"error": _converted(response.status, error)})
    return response


def refusal_in_bytes(path: str, status: int, refused: Mapping[str, Any], request_id: str) -> bytes:
    """Return a whole answer that closes the connection, for a request that aiohttp can't answer.

    Args:
        path: the path of the request, as far as it came.
        refused: the body in ComfyUI's form.
    """
    ids = head_line(request_id)
    if is_v2(path):
        refused = {"error": _converted(status, refused["error"])}
        ids += f"{REQUEST_ID}: {request_id}\r\n".encode()
    body = json_codec.dumps(refused)
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
    rest = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + ids + rest.encode() + body


def _error_of(body: object) -> Mapping[str, Any]:
    try:
        value = json_codec.loads(body) if isinstance(body, bytes) and body else {}
    except json_codec.MalformedJson:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _converted(status: int, error: Mapping[str, Any]) -> dict[str, Any]:
    code = _BY_TYPE.get(str(error.get("type"))) or code_of(status)
    told = [str(text) for text in (error.get("message"), error.get("details")) if text]
    message = ": ".join(told)[:MAX_MESSAGE] or "The request is refused"
    return {"code": code, "message": message, "details": error.get("extra_info") or None}


def code_of(status: int) -> str:
    """Return the code of a refusal of which the status alone is known."""
    return _CODES.get(status) or ("invalid_request" if status < 500 else "upstream_error")
