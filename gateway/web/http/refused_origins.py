"""Log lines about refused requests: of pages of other origins, and under other host names.

Each origin and each host has at most one line a minute, and a bounded number of them have lines, because any stranger
can send any header.
"""

from __future__ import annotations

import time

from aiohttp import web

from gateway.telemetry import logs
from gateway.web.http.request_ids import request_id_of

_log = logs.get("http")

SECONDS = 60.0
# Origins, and hosts, that have lines within a minute; further ones have none.
MAX_NAMES = 64
# Characters of an origin or a host in a line.
MAX_SHOWN = 200


class OncePerMinute:
    """The names that had a line in the last minute. Pure: the time is passed in."""

    def __init__(self) -> None:
        self._lines: dict[str, float] = {}

    def is_due(self, name: str, now: float) -> bool:
        """Return True if a name may have a line now, and note the line."""
        lines = self._lines
        if now - lines.get(name, -SECONDS) < SECONDS:
            return False
        lines.pop(name, None)
        # The oldest line is the first.
        while lines and now - next(iter(lines.values())) >= SECONDS:
            del lines[next(iter(lines))]
        if len(lines) >= MAX_NAMES:
            return False
        lines[name] = now
        return True


class RefusedOrigins:
    """Writer of the log lines."""

    def __init__(self) -> None:
        self._origins = OncePerMinute()
        self._hosts = OncePerMinute()

    def origin(self, origin: str, host: str, hint: str, request_id: str) -> None:
        """Note that a page of an origin was refused. `origin` is empty if the request names none."""
        origin = origin[:MAX_SHOWN]
        if self._origins.is_due(origin, time.monotonic()):
            _log.warning("origin_refused", origin=origin or None, **_about(host, hint, request_id))

    def host(self, host: str, hint: str, request_id: str) -> None:
        """Note that a host name was refused."""
        if self._hosts.is_due(host[:MAX_SHOWN], time.monotonic()):
            _log.warning("host_refused", **_about(host, hint, request_id))


def _about(host: str, hint: str, request_id: str) -> dict[str, str]:
    # The host is the gateway's, as the request names it. A client's address has another name (client_address).
    return {"host": host[:MAX_SHOWN], "hint": hint, "request_id": request_id}


REFUSED_ORIGINS = web.AppKey("refused_origins", RefusedOrigins)


def note_refused_preflight(request: web.Request) -> None:
    """Note a refused CORS preflight. Of any other request, note nothing."""
    headers = request.headers
    if request.method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers:
        hint = "list the page's origin under cors.origins"
        request.app[REFUSED_ORIGINS].origin(headers["Origin"], headers.get("Host", ""), hint, request_id_of(request))
