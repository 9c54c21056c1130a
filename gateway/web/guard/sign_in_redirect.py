"""Redirect browsers without a session to the sign-in page."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from gateway.web.http.base_path import link_prefix

SIGN_IN = "/gateway/signin"


def is_navigation(request: web.Request) -> bool:
    """Return True if a person's browser asks for a page, and not a program for data."""
    return request.method == "GET" and "text/html" in request.headers.get("Accept", "")


def to_sign_in(request: web.Request) -> web.Response:
    """Return the redirect to the sign-in page.

    The redirect names the path to return to, without the prefix, but no query, because that may hold a key.
    """
    page = link_prefix(request) + SIGN_IN
    location = page if request.path == "/" else f"{page}?next={quote(request.path)}"
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})
