"""Client address, scheme and host of a request, as they were before trusted proxies passed it on.

The gateway believes the headers of proxies in ``server.trusted_proxies`` alone, because any other caller may have made
them up. The gateway never reads ``Forwarded`` (RFC 7239). A proxy that does not know this header passes on the one of
its own caller.
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
    """The networks of the proxies that the gateway believes.

    Args:
        networks: the networks in CIDR form.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(network) for network in networks]
        self.any = bool(networks)
        self._knows = lru_cache(maxsize=4096)(self._is_within)

    def knows(self, address: str | None) -> bool:
        """Return True if an address is a trusted proxy's."""
        return self.any and address is not None and self._knows(address)

    def _is_within(self, address: str) -> bool:
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client(self, peer: str | None, forwarded_for: Sequence[str]) -> str | None:
        """Return the right-most address that is no trusted proxy's: the caller of the outermost proxy.

        That caller wrote everything left of it. If a hop is no address, return the last address before it.

        Args:
            peer: the address at the other end of the connection.
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
    """Return an address without its zone; None if the text is none. ``::ffff:a.b.c.d`` (RFC 4291) becomes IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(hop: str) -> str:
    """Return a hop without its port, because ``1.2.3.4:5`` and ``[::1]:5`` are in use, too."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


PROXIES = web.AppKey("proxies", TrustedProxies)


def client_address(request: web.Request) -> str | None:
    """Return the client address of a request; None if the connection is gone already."""
    return address_of(request, request.app[PROXIES])


def address_of(request: web.BaseRequest, proxies: TrustedProxies) -> str | None:
    """Return the client address of any request, also of one without a route."""
    if not proxies.any:
        return request.remote
    if _CLIENT not in request:
        request[_CLIENT] = proxies.client(request.remote, request.headers.getall("X-Forwarded-For", ()))
    address: str | None = request[_CLIENT]
    return address


def client_scheme(request: web.Request) -> str:
    """Return ``https`` if the caller's own connection is under TLS, here or at a trusted proxy; else ``http``."""
    said = forwarded(request, "X-Forwarded-Proto").lower()
    if said in ("http", "https"):
        return said
    return "https" if request.transport is not None and request.transport.get_extra_info("sslcontext") else "http"


def client_host(request: web.Request) -> str:
    """Return the host that the caller asked for, with its port if one is given; empty if it named none."""
    asked = request.headers.get("Host", "")
    return forwarded(request, "X-Forwarded-Host") or asked if request.app[PROXIES].any else asked


def forwarded(request: web.Request, header: str) -> str:
    """Return the last value of a header if the peer is a trusted proxy, because proxies append; else an empty text."""
    proxies = request.app[PROXIES]
    if not proxies.any or header not in request.headers or not proxies.knows(request.remote):
        return ""
    return request.headers.getall(header)[-1].rpartition(",")[2].strip()
