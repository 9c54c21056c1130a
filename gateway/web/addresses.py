"""From where a request comes."""

from __future__ import annotations

from aiohttp import web


def client_address(request: web.Request) -> str | None:
    """The address of whoever sent a request; None where the connection is gone already."""
    return request.remote
