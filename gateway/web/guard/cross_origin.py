"""Cross-origin requests: permissions of pages of other sites, and the host names that requests may use.

A gateway on loopback, or one that a browser holds a cookie for, is open to every page that its user visits. ComfyUI
refuses requests of such pages (server.py, create_origin_only_middleware), and so does the gateway. It permits reads of
a page that sends a key of its own, because the page then acts in nobody else's name. It permits links, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from gateway.artifacts.links import OWN_PATH
from gateway.settings import Settings
from gateway.tenants.credentials import QUERY_PARAMETER
from gateway.tenants.roles import Access, without_api
from gateway.web.http.allowed_hosts import Hosts, configured_hosts, host_of, hosts_without_keys
from gateway.web.http.client_address import client_host, client_scheme
from gateway.web.http.refused_origins import REFUSED_ORIGINS
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.responses import problem

READS = frozenset({"GET", "HEAD", "OPTIONS"})
# Monitoring may use any name or address.
ANY_NAME = frozenset({"/healthz", "/readyz"})
_OWN_PAGES = frozenset({"same-origin", "none"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_ALLOWED_HOSTS = "list it in server.allowed_hosts"
_ADMINS_PAGE = "open this route from a page of the gateway's own, or send an admin's key as X-API-Key"


def is_preflight(request: web.Request) -> bool:
    """Return True if a request is a CORS preflight. It carries no key; the listed origins decide its answer."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


@dataclass(frozen=True, slots=True)
class Asked:
    """A browser's statements about a request. `site` and `mode` are Sec-Fetch-Site and -Mode, empty if not sent.

    `brings_key`: the key that counts is one that no browser adds by itself. `is_signed_in`: the request has a key that
    a browser adds by itself, in a cookie or as Basic credentials. `is_open`: nobody needs a key.
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
    is_open: bool = False


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
        if not (hosts.any or request.path in ANY_NAME or (refused := _refused_host(hosts, request)) is None):
            request.app[REFUSED_ORIGINS].host(refused, _ALLOWED_HOSTS, request_id_of(request))
            return problem(403, "unknown_host", "The gateway does not go by this name", _ALLOWED_HOSTS)
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
        origin = _origin_of(asked.referer) if asked.origin is None else asked.origin
        request.app[REFUSED_ORIGINS].origin(origin, asked.host, why, request_id_of(request))
        return problem(403, "foreign_origin", "This origin may not call", why)

    def forbids(self, asked: Asked) -> str | None:
        """Return the advice if a page may not make a request; None if it may."""
        is_read = asked.method in READS
        acts = not is_read or asked.path == "/ws"
        if acts and asked.origin is not None and not (asked.origin in self._listed or _is_own(asked, asked.origin)):
            return _advice(asked, asked.origin)
        if asked.brings_key:
            return None
        if is_read and asked.for_admins and not asked.path.startswith("/gateway"):
            # Some routes of ComfyUI-Manager act when they are read (/manager/reboot).
            return self._forbids_reading_of_admins(asked)
        if asked.site != "cross-site" or (is_read and asked.mode == "navigate"):
            return None
        if asked.origin in self._listed or _origin_of(asked.referer) in self._listed:
            return None
        return _advice_on_embedding(asked) if asked.origin is None else _advice(asked, asked.origin)

    def _forbids_reading_of_admins(self, asked: Asked) -> str | None:
        if asked.origin in self._listed:
            return None
        if asked.site:
            return None if asked.site in _OWN_PAGES else _ADMINS_PAGE
        # Browsers send Sec-Fetch-Site under TLS and on loopback alone. If it is missing, the page must be known.
        if asked.referer or asked.is_signed_in:
            return None if _is_own(asked, _origin_of(asked.referer)) else _ADMINS_PAGE
        return None


def _refused_host(hosts: Hosts, request: web.Request) -> str | None:
    """Return the name of a request by which the gateway must not be asked; None if there is none.

    Among `hosts.local` names both count, X-Forwarded-Host and Host. A page whose name was pointed here can send any
    X-Forwarded-Host, and nginx passes it on, but the page can't choose its Host.
    """
    asked = client_host(request)
    if not hosts.allows(asked):
        return asked
    own = request.headers.get("Host", "")
    return own if hosts.local and own != asked and not hosts.allows(own) else None


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
        # A signed link lets in any page that has it, and nothing else about its request counts.
        brings_key="X-API-Key" in headers or credentials == "bearer" or counts or request.path.startswith(OWN_PATH),
        is_signed_in="Cookie" in headers or credentials == "basic",
        is_open=is_open,
    )


def _is_own(asked: Asked, origin: str) -> bool:
    """Return True if an origin is the gateway's own, as its caller sees it (RFC 6454).

    If either side names no port, the port is ignored, as in ComfyUI (server.py, create_origin_only_middleware), because
    proxies drop it from Host (nginx's ``$host``) or put their own there. Unlike in ComfyUI, the page must not be one
    that its browser calls same-site, which another port's page of this host is.

    Behind a proxy that is not trusted the gateway can't know that TLS ends there, so an https origin passes. If the
    caller used https, an http origin does not pass, because anybody on the way may have changed an unencrypted page.
    """
    scheme, page = _split(origin.lower())
    if scheme not in _DEFAULT_PORTS or (scheme == "http" and asked.scheme == "https"):
        return False
    default, host = _DEFAULT_PORTS[scheme], asked.host.lower()
    if page.removesuffix(default) == host.removesuffix(default) != "":
        return True
    name = host_of(host)
    lacks_port = not (page.removeprefix(name).strip(":") and host.removeprefix(name).strip(":"))
    return lacks_port and host_of(page) == name != "" and asked.site in ("", "same-origin")


def _advice(asked: Asked, origin: str) -> str:
    """Return the advice to the operator of a page whose origin is not the gateway's own, nor listed."""
    scheme, page = _split(origin.lower())
    if scheme not in _DEFAULT_PORTS or not page:
        return "serve the page from http:// or https://, and list its origin under cors.origins; no other can be listed"
    if asked.site == "cross-site":
        return "list the page's origin under cors.origins"
    if host_of(page) != host_of(asked.host.lower()):
        return (
            "list the page's origin under cors.origins; or, if the page is the gateway's own behind a proxy, have the "
            "proxy pass on the Host that it was asked for (nginx: proxy_set_header Host $http_host), or send "
            "X-Forwarded-Host and stand in server.trusted_proxies"
        )
    if scheme == "http" and asked.scheme == "https":
        return "open the page over https as well, or list its origin under cors.origins"
    return (
        "the page's port is not the one of the Host header: list the page's origin under cors.origins; or, if the page "
        "is the gateway's own behind a proxy, have the proxy pass on Host with its port (nginx: proxy_set_header Host "
        "$http_host)"
    )


def _advice_on_embedding(asked: Asked) -> str:
    """Return the advice to the operator of a page that embeds an answer, such as a picture, without an Origin."""
    listing = "list the page's origin under cors.origins, and let the page send it as Referer (Referrer-Policy: origin)"
    return listing if asked.is_open else f"{listing}, or put a key into the URL (?token=)"


def _split(origin: str) -> tuple[str, str]:
    """Return the scheme of an origin, and its host with the port; empty if the text is no URL."""
    try:
        parsed = urlsplit(origin)
    except ValueError:
        return "", ""
    return parsed.scheme, parsed.netloc


def _origin_of(url: str) -> str:
    scheme, host = _split(url)
    return f"{scheme}://{host}" if host else ""
