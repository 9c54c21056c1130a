"""Plain HTTP beside https: every request gets a redirect to https, or a refusal."""

from __future__ import annotations

import re

from aiohttp import web

from gateway.tenants.credentials import QUERY_PARAMETER
from gateway.web.http.allowed_hosts import Hosts, host_of
from gateway.web.http.request_ids import plain_request
from gateway.web.http.responses import problem
from gateway.web.server.request_smuggling import quiet_logger

_SANE = re.compile(r"^[A-Za-z0-9._-]+$|^\[[0-9A-Fa-f:.]+\]$")


def redirecting(hosts: Hosts, port: int) -> web.Server:
    """Return a server that answers with 308 to the same path of the same host, under https.

    The host is the one in the request, because only the caller knows the name by which it reaches the gateway. No page
    can misuse this, because a browser writes the header itself. Names that the gateway does not answer to get 400.

    Args:
        hosts: the names that the gateway answers to.
        port: the port for https.
    """

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        url = request.rel_url
        location = target(request.headers.get("Host", ""), url.raw_path, url.raw_query_string, hosts, port)
        if location is None:
            details = "the Host header names none that is answered to; the operator lists them in server.allowed_hosts"
            return problem(400, "unknown_host", "The request is not sent on", details, {"Connection": "close"})
        return web.Response(status=308, headers={"Location": location, "Cache-Control": "no-store"})

    return web.Server(answer, request_factory=plain_request, access_log=None, logger=quiet_logger())


def target(asked: str, path: str, query: str, hosts: Hosts, port: int) -> str | None:
    """Return the location for a request to the host `asked`; None if the gateway does not answer to this name."""
    host = host_of(asked)
    if not _SANE.match(host) or not hosts.allows(asked):
        return None
    # The target of OPTIONS may be "*", which would stand right behind the host.
    path = path if path.startswith("/") else "/"
    # Leave out a key, because the redirect would repeat it unencrypted.
    kept = "&".join(part for part in query.split("&") if part and part.partition("=")[0] != QUERY_PARAMETER)
    return f"https://{host}{f':{port}' if port != 443 else ''}{path}{f'?{kept}' if kept else ''}"
