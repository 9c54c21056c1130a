"""Responses in ComfyUI's forms."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.comfy import json_codec
from gateway.comfy.errors import error_body
from gateway.tenants.policy import NO_BACKEND, NO_BACKEND_HINT

JSON = "application/json; charset=utf-8"
# Nothing that a caller may have put into it is to be taken for a page.
# Whose it is does not show in its URL, so no cache that several callers share may keep it.
JSON_HEADERS = {"Content-Type": JSON, "X-Content-Type-Options": "nosniff", "Cache-Control": "private"}


def json_bytes(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer of JSON that is encoded already."""
    return web.Response(body=body, status=status, headers={**JSON_HEADERS, **headers} if headers else JSON_HEADERS)


def json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer of plain data, encoded as JSON."""
    return web.Response(body=json_codec.dumps(value), status=status, headers={**JSON_HEADERS, **(headers or {})})


def empty(status: int = 200) -> web.Response:
    """Return an empty answer, as ComfyUI's to POST /queue and similar requests."""
    return web.Response(status=status)


def problem(
    status: int, type_: str, message: str, details: str = "", headers: dict[str, str] | None = None, **extra: Any
) -> web.Response:
    """Return a refusal in ComfyUI's error form."""
    return json(error_body(type_, message, details, extra), status, headers)


def no_file() -> web.Response:
    """Return the refusal for a file that does not exist or is another tenant's. It is the same for both."""
    details = "look at filename, subfolder and type; the history tells the files that a prompt made"
    return problem(404, "file_not_found", "There is no such file", details)


def no_answer() -> web.Response:
    """Return the refusal for a request that a backend failed to answer."""
    return problem(502, "backend_unavailable", "The backend did not answer", headers={"Retry-After": "5"})


def no_backend_allowed() -> web.Response:
    """Return the refusal for a caller whose tenant may use no backend."""
    return problem(403, "no_backend_allowed", NO_BACKEND, NO_BACKEND_HINT)
