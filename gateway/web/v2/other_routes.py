"""Routes of the Comfy API v2 beside jobs and assets: health, and its description."""

from __future__ import annotations

from aiohttp import web

from gateway.web.http.base_path import link_prefix
from gateway.web.http.responses import json
from gateway.web.v2.openapi import document


async def get_health(_: web.Request) -> web.Response:
    """Answer that the API serves."""
    return json({"status": "healthy"})


async def get_openapi(request: web.Request) -> web.Response:
    """Answer with the description of the API. Under a prefix it names the prefix as the server."""
    prefix = link_prefix(request)
    return json({**document(), "servers": [{"url": prefix}]} if prefix else document())
