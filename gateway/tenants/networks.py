"""Networks of client addresses: those that one person or one site shares."""

from __future__ import annotations

import ipaddress


def network_of(address: str) -> str:
    """What one caller is known by: an IPv4 address, or the /64 that an IPv6 host is given (RFC 6177).

    An IPv4 address that a socket of both families shows as ``::ffff:a.b.c.d`` is that IPv4 address. Whatever is no
    address is itself.
    """
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"
