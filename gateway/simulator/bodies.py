"""Bodies of requests, read as ComfyUI reads them (aiohttp, request.json())."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from gateway.comfy import json_codec


async def read_json(request: web.Request) -> Any:
    """Return a body's JSON. The text is decoded by its charset first, so that a byte order mark stays in it.

    Raises:
        JSONDecodeError: the text is no JSON.
        LookupError, ValueError, RecursionError: the charset is unknown, the text is not in it, has an integer of
            thousands of digits, or is nested too deep. ComfyUI handles none of these.
    """
    text = await request.text()
    value = json_codec.loads_exactly(text.encode("utf-8", "surrogatepass"))
    return json.loads(text) if value is None else value
