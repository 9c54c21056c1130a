"""Redirect browsers without a session to the sign-in page."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

SIGN_IN = "/gateway/signin"


def is_navigation(request: web.Request) -> bool:
    """Return True if a person's browser asks for a page, and not a program for data."""
    return request.method == "GET" and "text/html" in request.headers.get("Accept", "")


def to_sign_in(request: web.Request) -> web.Response:
    """Return the redirect to the sign-in page. It names the path to return to, but no query: that may hold a key."""
    location = SIGN_IN if request.path == "/" else f"{SIGN_IN}?next={quote(request.path)}"
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})
