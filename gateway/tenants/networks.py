"""Networks of client addresses: the addresses that one person or one site shares."""

from __future__ import annotations

import ipaddress


def network_of(address: str) -> str:
    """Return the network that counts as one caller: an IPv4 address, or the /64 of an IPv6 host (RFC 6177).

    A socket of both families shows an IPv4 address as ``::ffff:a.b.c.d``: this returns the IPv4 address. A text that is
    no address is returned as it is.
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
