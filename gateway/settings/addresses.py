"""Compare addresses in a configuration, because two names may be one process. Pure, so no name is looked up."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

LOOPBACK = "loopback"


def canonical_host(host: str) -> str:
    """Return a host in one spelling. localhost, 127.0.0.1, ::1 and the unspecified addresses are all LOOPBACK."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return LOOPBACK
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    if address.is_unspecified or str(address) in ("127.0.0.1", "::1"):
        return LOOPBACK
    return str(address)


def host_and_port(url: str) -> tuple[str, int]:
    """Return the host of a URL in lower case, and its port; if it names no port, the scheme's own.

    Raises:
        ValueError: the URL has no valid host and port.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0 or "\\" in parts.netloc:
        raise ValueError("the host or the port is missing")
    # Refuse a name with an empty or too long label: no look-up takes it, and Python's fails with a UnicodeError.
    parts.hostname.encode("idna")
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def is_own_address(url: str, host: str, port: int) -> bool:
    """Return True if a backend's URL is the address on which the gateway itself listens."""
    if port == 0:
        return False
    asked_host, asked_port = host_and_port(url)
    own = canonical_host(host)
    return asked_port == port and canonical_host(asked_host) == own
