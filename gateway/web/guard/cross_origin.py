"""Cross-origin requests: permissions of pages of other sites, and the host names that requests may use.

A gateway on loopback, or one that a browser holds a cookie for, is open to every page that its user visits. ComfyUI
refuses requests of such pages (server.py, create_origin_only_middleware), and so does the gateway. It permits reads of
a page that sends a key of its own, because the page then acts in nobody else's name. It permits links, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from gateway.settings import Settings
from gateway.tenants.credentials import QUERY_PARAMETER
from gateway.tenants.roles import Access, without_api
from gateway.web.http.allowed_hosts import configured_hosts, hosts_without_keys
from gateway.web.http.client_address import client_host, client_scheme
from gateway.web.http.responses import problem

READS = frozenset({"GET", "HEAD", "OPTIONS"})
# Monitoring may use any name or address.
ANY_NAME = frozenset({"/healthz", "/readyz"})
_OWN_PAGES = frozenset({"same-origin", "none"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_preflight(request: web.Request) -> bool:
    """Return True if a request is a CORS preflight. It carries no key; the listed origins decide its answer."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


@dataclass(frozen=True, slots=True)
class Asked:
    """A browser's statements about a request. `site` and `mode` are Sec-Fetch-Site and -Mode, empty if not sent.

    `brings_key`: the key that counts is one that no browser adds by itself. `is_signed_in`: the request has a key that
    a browser adds by itself, in a cookie or as Basic credentials.
    """

    method: str
    path: str
    scheme: str
    host: str
    for_admins: bool = False
    origin: str | None = None
    referer: str = ""
    site: str = ""
    mode: str = ""
    brings_key: bool = False
    is_signed_in: bool = False


class Origins:
    """The rules for requests of web pages.

    Args:
        settings: the configuration, which lists origins and host names.
    """

    def __init__(self, settings: Settings) -> None:
        self._listed = frozenset(settings.cors.origins)
        self._hosts = configured_hosts(settings)
        self._hosts_without_keys = hosts_without_keys(settings)

    def refusal(self, request: web.Request, access: Access, *, is_open: bool) -> web.Response | None:
        """Return the refusal of a request that a page may not make; None if it may, or if no page made it.

        Args:
            request: the request.
            access: the access of its route.
            is_open: True if nobody needs a key.
        """
        # If a request names no page, it is a program's: let it pass quickly, because every request comes here.
        hosts = self._hosts_without_keys if is_open else self._hosts
        if not (hosts.any or hosts.allows(client_host(request)) or request.path in ANY_NAME):
            return problem(
                403, "unknown_host", "The gateway does not go by this name", "list it in server.allowed_hosts"
            )
        headers = request.headers
        if (
            "Origin" in headers
            or "Sec-Fetch-Site" in headers
            or "Cookie" in headers
            or "Referer" in headers
            or headers.get("Authorization", "")[:6].lower() == "basic "
        ):
            asked = _asked(request, access, is_open=is_open)
        else:
            return None
        if (why := self.forbids(asked)) is None:
            return None
        return problem(403, "foreign_origin", "This origin may not call", why)

    def forbids(self, asked: Asked) -> str | None:
        """Return the advice if a page may not make a request; None if it may."""
        is_read = asked.method in READS
        acts = not is_read or asked.path == "/ws"
        if acts and asked.origin is not None and not (asked.origin in self._listed or _is_own(asked, asked.origin)):
            return "list it under cors.origins"
        if asked.brings_key:
            return None
        if is_read and asked.for_admins and not asked.path.startswith("/gateway"):
            # Some routes of ComfyUI-Manager act when they are read (/manager/reboot).
            return self._forbids_reading_of_admins(asked)
        if asked.site != "cross-site" or (is_read and asked.mode == "navigate"):
            return None
        is_listed = asked.origin in self._listed or _origin_of(asked.referer) in self._listed
        return None if is_listed else "list it under cors.origins, or have the page send a key"

    def _forbids_reading_of_admins(self, asked: Asked) -> str | None:
        why = "this route is for pages of the gateway's own, or for a key in a header"
        if asked.origin in self._listed:
            return None
        if asked.site:
            return None if asked.site in _OWN_PAGES else why
        # Browsers send Sec-Fetch-Site under TLS and on loopback alone. If it is missing, the page must be known.
        if asked.referer or asked.is_signed_in:
            return None if _is_own(asked, _origin_of(asked.referer)) else why
        return None


def _asked(request: web.Request, access: Access, *, is_open: bool) -> Asked:
    headers = request.headers
    credentials = headers.get("Authorization", "").partition(" ")[0].lower()
    # Any page may put a token into a link, so it is the page's own key only if it is the key that counts.
    counts = not is_open and credentials != "basic" and bool(request.rel_url.query.get(QUERY_PARAMETER, "").strip())
    return Asked(
        method=request.method,
        path=without_api(request.path),
        for_admins=access is Access.ADMINS,
        scheme=client_scheme(request),
        host=client_host(request),
        origin=headers.get("Origin"),
        referer=headers.get("Referer", ""),
        site=headers.get("Sec-Fetch-Site", ""),
        mode=headers.get("Sec-Fetch-Mode", ""),
        brings_key="X-API-Key" in headers or credentials == "bearer" or counts,
        is_signed_in="Cookie" in headers or credentials == "basic",
    )


def _is_own(asked: Asked, origin: str) -> bool:
    """Return True if an origin is the gateway's own, as its caller sees it (RFC 6454).

    Behind a proxy that is not trusted the gateway can't know that TLS ends there, so an https origin passes. If the
    caller used https, an http origin does not pass, because anybody on the way may have changed an unencrypted page.
    """
    parsed = urlsplit(origin)
    if parsed.scheme not in _DEFAULT_PORTS or (parsed.scheme == "http" and asked.scheme == "https"):
        return False
    port = _DEFAULT_PORTS[parsed.scheme]
    return parsed.netloc.lower().removesuffix(port) == asked.host.lower().removesuffix(port) != ""


def _origin_of(url: str) -> str:
    try:
        parsed = urlsplit(url)
    except ValueError:
        return ""
    return f"{parsed.scheme}://{parsed.netloc}" if parsed.netloc else ""
