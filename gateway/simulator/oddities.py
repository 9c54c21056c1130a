"""Answers and socket messages that no ComfyUI sends, for the fault `odd`."""

from __future__ import annotations

import itertools

from aiohttp import web

BODIES = (
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"5",
    b"<html><body>Bad gateway</body></html>",
    b'{"queue_running": {"a": 1, "b": 2}, "queue_pending": "x"}',
    b'{"queue_running": [], "queue_pend',
    b'{"system": [], "devices": {}}',
    b'{"prompt_id": 5, "number": "x", "node_errors": []}',
    b"\xff\xfe\x00",
    b'{"a":' * 2000,
)
MESSAGES = (
    "",
    "null",
    "not JSON",
    '{"type": 5, "data": {}}',
    '{"type": "status"}',
    '{"type": "executing", "data": {"prompt_id": "x"}}',
    '{"type": "executed", "data": {"node": ["x"], "prompt_id": "x", "output": {}}}',
    '{"type": "executed", "data": {"node": "1", "prompt_id": 5, "output": []}}',
    '{"type": "execution_cached", "data": {"nodes": [1, {}], "prompt_id": ["x"]}}',
    '{"type": "execution_error", "data": {"node_id": {}, "exception_message": 5}}',
    '{"type": "progress_state", "data": {"nodes": []}}',
    '{"type": "feature_flags", "data": {"max_upload_size": -1}}',
    "[" * 5000,
)


class Oddities:
    """Spoils answers and messages, with each oddity in turn."""

    def __init__(self) -> None:
        self._bodies = itertools.cycle(BODIES)
        self._messages = itertools.cycle(MESSAGES)

    def instead_of(self, response: web.StreamResponse) -> web.StreamResponse:
        """Return an odd answer instead of one that holds JSON; any other as it is."""
        if not isinstance(response, web.Response) or response.content_type != "application/json":
            return response
        return web.Response(status=response.status, body=next(self._bodies), content_type="application/json")

    def message(self) -> str:
        """Return an odd message."""
        return next(self._messages)
