"""Client address, scheme and host of a request, as they were before trusted proxies passed it on.

What a proxy says is believed of those in ``server.trusted_proxies`` alone; from anybody else the same headers are what
the caller made up. ``Forwarded`` (RFC 7239) is not read from anybody: a proxy that does not know it passes on what
its own caller wrote.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

from aiohttp import web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# More hops than any chain of proxies has; the rest of a longer header is not read.
MAX_HOPS = 32
_CLIENT = "client_address"


class TrustedProxies:
    """The networks whose word is taken.

    Args:
        networks: in CIDR form.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(network) for network in networks]
        self.any = bool(networks)
        self._knows = lru_cache(maxsize=4096)(self._is_within)

    def knows(self, address: str | None) -> bool:
        """Whether an address is that of a trusted proxy."""
        return self.any and address is not None and self._knows(address)

    def _is_within(self, address: str) -> bool:
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """The right-most address that is no trusted proxy's: who spoke to the outermost proxy.

        What stands left of it was written by that caller. A hop that is no address ends the search; what is known by
        then stands.

        Args:
            peer: who is connected.
            forwarded_for: the ``X-Forwarded-For`` lines, in their order.
        """
        found = peer
        hops = ",".join(forwarded_for).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        while self.knows(found) and hops:
            parsed = parse_address(_without_port(hops.pop().strip()))
            if parsed is None:
                break
            found = str(parsed)
        return found


def parse_address(text: str) -> Address | None:
    """An address, None if it is none. IPv4 in IPv6's form (``::ffff:a.b.c.d``, RFC 4291) is IPv4; zones go."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(hop: str) -> str:
    """``1.2.3.4:5`` and ``[::1]:5`` are in use, too."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


PROXIES = web.AppKey("proxies", TrustedProxies)


def client_address(request: web.Request) -> str | None:
    """The address of whoever sent a request; None where the connection is gone already."""
    return address_of(request, request.app[PROXIES])


def address_of(request: web.BaseRequest, proxies: TrustedProxies) -> str | None:
    """Return the same, of a request that no route has, too."""
    if not proxies.any:
        return request.remote
    if _CLIENT not in request:
        request[_CLIENT] = proxies.client(request.remote, request.headers.getall("X-Forwarded-For", ()))
    address: str | None = request[_CLIENT]
    return address


def client_scheme(request: web.Request) -> str:
    """``https`` where the caller's own connection is under TLS, here or at a trusted proxy; else ``http``."""
    said = _said(request, "X-Forwarded-Proto").lower()
    if said in ("http", "https"):
        return said
    return "https" if request.transport is not None and request.transport.get_extra_info("sslcontext") else "http"


def client_host(request: web.Request) -> str:
    """The host, with its port if one is given, that the caller asked for; empty if it did not say."""
    asked = request.headers.get("Host", "")
    return _said(request, "X-Forwarded-Host") or asked if request.app[PROXIES].any else asked


def _said(request: web.Request, header: str) -> str:
    """What the nearest proxy says, if it is trusted: the last value, which is its own where proxies append."""
    proxies = request.app[PROXIES]
    if not proxies.any or header not in request.headers or not proxies.knows(request.remote):
        return ""
    return request.headers.getall(header)[-1].rpartition(",")[2].strip()
