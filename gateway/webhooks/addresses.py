"""Decide if a webhook may be delivered to an address. Pure.

Closed by default: an IPv4 address must be in no special range, and an IPv6 address in the range of global unicast
(2000::/3) and in no special part of it. An IPv6 address that holds an IPv4 address may reach that one through a tunnel
or a translator, so each address that a packet may arrive at is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Reach(StrEnum):
    """The part of the network that an address belongs to: the internet, the operator's list, or what is refused."""

    PUBLIC = "public"
    LISTED = "listed"
    REFUSED = "refused"


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# IANA's registries of special addresses, as far as no receiver can have them, and the clouds' addresses of metadata.
_SPECIAL = _networks(
    "0.0.0.0/8",  # this host (RFC 791)
    "10.0.0.0/8",  # private (RFC 1918)
    "100.64.0.0/10",  # shared by a provider's customers (RFC 6598)
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's own services, at a public address
    "169.254.0.0/16",  # link-local; metadata of most clouds
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocols (RFC 6890)
    "192.0.2.0/24",  # documentation (RFC 5737)
    "192.88.99.0/24",  # 6to4 relays (RFC 7526)
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks (RFC 2544)
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "2001::/23",  # IETF protocols, Teredo and ORCHID among them (RFC 2928)
    "2001:db8::/32",  # documentation (RFC 3849)
    "2002::/16",  # 6to4 (RFC 3056)
    "3fff::/20",  # documentation (RFC 9637)
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# An operator's list that holds one of these by its size, such as 0.0.0.0/0, does not mean it: no receiver is there, but
# the credentials of a cloud's machine, and "this host".
_NEVER = _networks(
    "0.0.0.0/8",
    "100.100.100.200/32",  # metadata of Alibaba
    "168.63.129.16/32",
    "169.254.0.0/16",
    "192.0.0.192/32",  # metadata of Oracle
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "fd00:42::42/128",  # metadata of Scaleway
    "fd00:ec2::254/128",  # metadata of AWS
    "fd20:ce::254/128",  # metadata of Google
    "fe80::/10",  # link-local
    "ff00::/8",  # multicast
)
_MAPPED = IPv6Network("::ffff:0:0/96")  # RFC 4291
_COMPATIBLE = IPv6Network("::/96")  # RFC 4291, deprecated
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")  # RFC 2765, deprecated
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_6TO4 = IPv6Network("2002::/16")  # RFC 3056
_TEREDO = IPv6Network("2001::/32")  # RFC 4380
_LOW = 0xFFFF_FFFF


def destinations(address: Address) -> tuple[Address, ...]:
    """Return all addresses that a packet to this one may arrive at: itself, and the IPv4 addresses that it holds.

    A mapped address, and one of the well-known NAT64 prefix, is only another spelling of the IPv4 address.
    """
    if isinstance(address, IPv4Address):
        return (address,)
    value = int(address)
    last = IPv4Address(value & _LOW)
    if address in _MAPPED or address in _NAT64:
        return (last,)
    found: list[Address] = [address]
    if address in _LOCAL_NAT64:
        # With a prefix of /64 or shorter the IPv4 address lies further ahead, and these bits are 0 (RFC 6052, 2.2).
        found.append(last if value & 0xFF_FFFF else IPv4Address(0))
    elif address in _6TO4:
        found.append(IPv4Address(value >> 80 & _LOW))
    elif address in _TEREDO:
        # The server; then the client, its bits inverted.
        found += [IPv4Address(value >> 64 & _LOW), IPv4Address(~value & _LOW)]
    elif (address in _COMPATIBLE and value > 1) or address in _TRANSLATED:
        found.append(last)
    if value >> 32 & 0xFCFF_FFFF == 0x0000_5EFE:
        # ISATAP (RFC 5214), behind any prefix.
        found.append(last)
    return tuple(found)


def reach(address: Address, allow_networks: Sequence[Network] = ()) -> Reach:
    """Return the part of the network that an address belongs to; the strictest of all that it may arrive at."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return Reach.REFUSED
    found = {_reach(each, allow_networks) for each in destinations(address)}
    return next(each for each in (Reach.REFUSED, Reach.LISTED, Reach.PUBLIC) if each in found)


def is_allowed(address: Address, allow_networks: Sequence[Network] = ()) -> bool:
    """Return True if a webhook may be delivered to an address."""
    return reach(address, allow_networks) is not Reach.REFUSED


def parsed(text: str) -> Address | None:
    """Return the address that a text is in its usual form; None if it is none, such as ``127.1`` or a name."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _reach(address: Address, allow_networks: Sequence[Network]) -> Reach:
    """Judge one address, whatever it holds."""
    if _within(address, _NEVER):
        return Reach.REFUSED
    if address.is_loopback:
        # A list that holds loopback by its size does not mean it: this machine's own services trust who calls there.
        allow_networks = [each for each in allow_networks if each.is_loopback]
    if _within(address, allow_networks):
        return Reach.LISTED
    is_global = isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST
    return Reach.PUBLIC if is_global and not _within(address, _SPECIAL) else Reach.REFUSED


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
