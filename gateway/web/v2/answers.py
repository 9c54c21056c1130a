"""Answers of handlers of the Comfy API v2, also for what they refuse."""

from __future__ import annotations

from functools import wraps

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.web.http.v2_errors import V2Error


def answering(handler: Handler) -> Handler:
    """Return a handler that answers for each `V2Error`."""

    @wraps(handler)
    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except V2Error as error:
            return error.response()

    return answered
