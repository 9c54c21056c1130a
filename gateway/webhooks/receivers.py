"""Find the addresses that one attempt may connect to: look up the host now, and refuse what is not for webhooks.

All addresses of a host are checked, and if one is refused, the whole attempt is: a name that has a public address and
an inner one is an attack, or an error that should be seen rather than work by chance. Nothing is kept for the next
attempt. The gateway and its backends are refused even within `allow_networks`, because a ComfyUI runs what it is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address

from yarl import URL

from gateway.webhooks.addresses import Address, Reach, destinations, parsed, reach
from gateway.webhooks.lookups import Lookup
from gateway.webhooks.urls import BadUrl, Rules, parse_url

# A host with more addresses is no receiver, and each may cost a check of its own.
MAX_ADDRESSES = 32
# Addresses of each family that one attempt connects to.
MAX_TRIED = 2
# Any port: nothing is sent to it.
_DISCARD = 9


class Refused(Exception):
    """The receiver is not for webhooks. The text is for the operator: it may name addresses."""


class NoAddress(Exception):
    """The host can't be looked up."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """The URL and the addresses of one attempt. `is_inner` if one of them is in `allow_networks`."""

    url: URL
    addresses: tuple[Address, ...]
    is_inner: bool


class Receivers:
    """Receivers of webhooks.

    Args:
        rules: bounds of URLs and addresses.
        lookup: finds the addresses of a name.
        backends: returns the URLs of all backends at the time.
        listening: returns the ports on which the gateway itself listens.
    """

    def __init__(
        self,
        rules: Rules,
        lookup: Lookup,
        backends: Callable[[], Iterable[str]],
        listening: Callable[[], Collection[int]],
    ) -> None:
        self._rules = rules
        self._lookup = lookup
        self._backends = backends
        self._listening = listening

    async def find(self, text: str, tenant: str = "") -> Receiver:
        """Return the receiver of one attempt, which is a tenant's.

        Raises:
            Refused: the URL, or an address of its host, is not for webhooks.
            NoAddress: the host can't be looked up.
            NoThread: all lookups that the tenant may have are under way.
        """
        try:
            url = parse_url(text, self._rules)
        except BadUrl as error:
            raise Refused(str(error)) from error
        port = url.port or 0
        addresses = await self._addresses_of(url.raw_host or "", tenant)
        reaches = {address: reach(address, self._rules.allow_networks) for address in addresses}
        places: set[Address | None] = set()
        for address, found in reaches.items():
            if found is Reach.REFUSED:
                raise Refused(f"{address} is not public, and not in webhooks.allow_networks")
            if found is Reach.PUBLIC and not self._rules.is_port_allowed(port):
                raise Refused(f"port {port} is not in webhooks.ports")
            there = {place_of(each) for each in destinations(address)}
            if found is Reach.PUBLIC and None in there:
                raise Refused(f"{address} is this machine's own, and not in webhooks.allow_networks")
            places |= there
        if None in places and port in self._listening():
            raise Refused(f"port {port} of this machine is the gateway's own")
        is_inner = Reach.LISTED in reaches.values()
        for backend in self._backends():
            if await self._is_backend(URL(backend), url, places, is_inner, tenant):
                raise Refused("the host is a backend")
        return Receiver(url, tried(addresses), is_inner)

    async def _is_backend(
        self, backend: URL, url: URL, places: set[Address | None], is_inner: bool, tenant: str
    ) -> bool:
        """Return True if a URL leads to a backend: by its name, or by an address at the same port.

        Behind one public address many hosts may answer by https, each under its own name. There the name decides,
        because the certificate proves it.

        Raises:
            Refused: the backend's own name can't be looked up.
        """
        if backend.port != url.port:
            return False
        name = (backend.raw_host or "").removesuffix(".")
        if name == url.raw_host:
            return True
        if backend.scheme == url.scheme == "https" and not is_inner and parsed(name) is None:
            return False
        try:
            addresses = await self._addresses_of(name, tenant)
        except NoAddress as error:
            raise Refused("a backend has this port, and its name can't be looked up to compare addresses") from error
        return not places.isdisjoint(place_of(each) for address in addresses for each in destinations(address))

    async def _addresses_of(self, host: str, tenant: str) -> tuple[Address, ...]:
        """Return the addresses of a host.

        Raises:
            NoAddress: there are none, or more than any receiver has.
        """
        literal = parsed(host)
        if literal is not None:
            return (literal,)
        try:
            texts = await self._lookup(host, tenant)
        except OSError as error:
            raise NoAddress("the host can't be looked up") from error
        found = tuple(address for text in texts if (address := parsed(text)) is not None)
        if not found or len(found) < len(texts) or len(found) > MAX_ADDRESSES:
            raise NoAddress(f"the host has {len(texts)} addresses")
        return found


def tried(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Return the addresses to connect to: the first ones of each family, so that one event causes few connections."""
    kept: list[Address] = []
    for address in addresses:
        if sum(each.version == address.version for each in kept) < MAX_TRIED:
            kept.append(address)
    return tuple(kept)


def place_of(address: Address) -> Address | None:
    """Return an address, or None for this machine, which has many."""
    return None if address.is_loopback or address.is_unspecified or is_own(address) else address


def is_own(address: Address) -> bool:
    """Return True if an address is this machine's: the system then takes it as the source, too. Nothing is sent."""
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.connect((str(address), _DISCARD))
            return parsed(str(probe.getsockname()[0])) == address
    except OSError:
        # There is no route, so nothing can be sent to it.
        return False
