"""Redirect browsers without a session to the sign-in page."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

SIGN_IN = "/gateway/signin"


def is_navigation(request: web.Request) -> bool:
    """Whether a person's browser asks for a page, rather than a program for data."""
    return request.method == "GET" and "text/html" in request.headers.get("Accept", "")


def to_sign_in(request: web.Request) -> web.Response:
    """Send a browser to the sign-in page, and back here afterwards; without the query, which may hold a key."""
    location = SIGN_IN if request.path == "/" else f"{SIGN_IN}?next={quote(request.path)}"
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})
