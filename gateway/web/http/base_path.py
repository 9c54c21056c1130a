"""The path prefix of a gateway that is a part of a site, such as ``/comfy``: removed from requests, put before links.

A proxy may remove the prefix or pass it on. So a request whose path begins with ``server.base_path`` loses the prefix
before the router sees it, and any other request stays as it is. Links begin with the prefix that the client sees: the
X-Forwarded-Prefix of a trusted proxy, else ``server.base_path``.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from yarl import URL

from gateway.settings.base_path import MAX_PREFIX, path_prefix
from gateway.web.http.client_address import forwarded

BASE_PATH = web.AppKey("base_path", str)


def without_base_path(message: RawRequestMessage, base_path: str) -> RawRequestMessage:
    """Return a request without the prefix; as it is if its path is not below the prefix.

    Args:
        message: the request's head.
        base_path: the prefix, without a slash at its end.
    """
    path = message.url.raw_path
    if not path.startswith(f"{base_path}/"):
        return message
    query = message.url.raw_query_string
    url = URL.build(path=path[len(base_path) :], query_string=query, encoded=True)
    return message._replace(path=f"{url.raw_path}?{query}" if query else url.raw_path, url=url)


def path_of_head(start: bytes, base_path: str) -> str:
    """Return the path in the request line of a head that could not be read, without the prefix; empty if there is none.

    Args:
        start: the first bytes of the head.
        base_path: the prefix, without a slash at its end.
    """
    # Any blanks, because a line that can't be read may have others than HTTP's.
    words = start.lstrip().partition(b"\n")[0].decode("latin-1").split()
    return path_of_target(next((each for each in words if each[0] == "/" or "://" in each), ""), base_path)


def path_of_target(target: str, base_path: str) -> str:
    """Return the path in a request's target, without the prefix.

    Args:
        target: a path, or an absolute URL.
        base_path: the prefix, without a slash at its end.
    """
    if not target.startswith("/"):
        # The absolute form (RFC 9112, section 3.2.2).
        target = "/" + target.partition("://")[2].partition("/")[2]
    path = target.partition("?")[0]
    return path[len(base_path) :] if path.startswith(f"{base_path}/") else path


def link_prefix(request: web.Request) -> str:
    """Return the prefix of links, cookies and redirects for a client: empty, or a path without a slash at its end."""
    base_path = request.app[BASE_PATH]
    said = forwarded(request, "X-Forwarded-Prefix")
    if not said or len(said) > MAX_PREFIX + 1:
        return base_path
    prefix = path_prefix(said)
    return base_path if prefix is None else prefix


def shown_path(request: web.BaseRequest, path: str) -> str:
    """Return one of the gateway's own paths as the client of a request sees it, for texts."""
    # The redirect from plain HTTP is a server of its own, without an application.
    if isinstance(request, web.Request) and BASE_PATH in request.app:
        return link_prefix(request) + path
    return path


async def add_slash(request: web.Request) -> web.Response:
    """Redirect from the prefix itself to the path below it, because the web UI's links are relative."""
    query = request.rel_url.raw_query_string
    location = f"{link_prefix(request)}/{f'?{query}' if query else ''}"
    return web.Response(status=308, headers={"Location": location, "Cache-Control": "no-store"})
