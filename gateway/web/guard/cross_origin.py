"""Cross-origin requests: what pages of other sites may do here in their user's name, and under which host names.

A gateway on loopback, or one that a browser holds a cookie for, is open to every page that its user visits. ComfyUI
refuses what such pages ask (server.py, create_origin_only_middleware); so does the gateway, but a page that sends a
key of its own is not acting in anybody's name, and a link may lead here.
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
# Monitoring asks by whatever name or address it has.
ANY_NAME = frozenset({"/healthz", "/readyz"})
_OWN_PAGES = frozenset({"same-origin", "none"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks what it may send. That carries no key; it is answered from the origins that are listed."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


@dataclass(frozen=True, slots=True)
class Asked:
    """What a browser says of a request. `site` and `mode` are Sec-Fetch-Site and -Mode, empty if it says nothing.

    `brings_key` says that the key which counts is one that no browser adds by itself, `is_signed_in` that there is one
    which a browser does: a cookie, or Basic credentials.
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
    """Which pages may ask for what.

    Args:
        settings: lists the origins and the names.
    """

    def __init__(self, settings: Settings) -> None:
        self._listed = frozenset(settings.cors.origins)
        self._hosts = configured_hosts(settings)
        self._hosts_without_keys = hosts_without_keys(settings)

    def refusal(self, request: web.Request, access: Access, *, is_open: bool) -> web.Response | None:
        """The answer to a request that a page may not make; None if it may, or if no page made it.

        Args:
            request: the request.
            access: who may use its route.
            is_open: whether nobody needs a key.
        """
        # Each request passes here: a program's, which says nothing of pages, has to come through quickly.
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
        """Why a page may not ask for this; None if it may."""
        is_read = asked.method in READS
        acts = not is_read or asked.path == "/ws"
        if acts and asked.origin is not None and not (asked.origin in self._listed or _is_own(asked, asked.origin)):
            return "list it under cors.origins"
        if asked.brings_key:
            return None
        if is_read and asked.for_admins and not asked.path.startswith("/gateway"):
            # Some of ComfyUI-Manager's do something when they are read (/manager/reboot).
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
        # Browsers tell more under TLS and on loopback alone. Elsewhere the page that asks has to be known.
        if asked.referer or asked.is_signed_in:
            return None if _is_own(asked, _origin_of(asked.referer)) else why
        return None


def _asked(request: web.Request, access: Access, *, is_open: bool) -> Asked:
    headers = request.headers
    credentials = headers.get("Authorization", "").partition(" ")[0].lower()
    # Any page may put a token into a link: it is the page's own key only where it is the one that is judged.
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
    """Whether an origin is the gateway's own, as its caller sees it (RFC 6454).

    Behind a proxy whose word is not taken the gateway can't tell that TLS ends there, so https is believed. The reverse
    is not: a page that came in the clear may be anybody's on the way.
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
