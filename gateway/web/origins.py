"""Pages of other origins: which of them may write here, or open a socket, in a visitor's name."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web

from gateway.settings import Settings
from gateway.tenants.roles import without_api

READS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks what it may send. That carries no key; it is answered from the origins that are listed."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def is_foreign(request: web.Request, settings: Settings) -> bool:
    """Whether a page of another origin writes here, or opens a socket, in a visitor's name.

    A gateway on loopback is open to every page that its user visits; ComfyUI refuses the same (server.py,
    create_origin_only_middleware).
    """
    origin = request.headers.get("Origin")
    if origin is None or (request.method in READS and without_api(request.path) != "/ws"):
        return False
    return urlsplit(origin).netloc != request.host and origin not in settings.cors.origins
