"""Allowed hosts: the names by which clients may address the gateway.

A page whose own name was pointed at the gateway's address after it was loaded (DNS rebinding) is of the gateway's
origin for its browser, and may read all that is answered without a key. Its requests carry that name as their Host.
"""

from __future__ import annotations

from gateway.settings import Settings, is_loopback
from gateway.web.http.client_address import parse_address

# Spellings of our own names that are remembered: each with its port.
MAX_KNOWN_HOSTS = 1024
# A longer one is remembered by nobody: a proxy passes on what its caller says.
MAX_KNOWN = 300


class Hosts:
    """The names that are answered to.

    Args:
        names: host names in lower case, ``*.domain`` for all below it; none for any.
        local: whether names are answered to as well that are nobody's on the internet: addresses, localhost and all
            below it, and names without a dot, which no registry gives away.
    """

    def __init__(self, names: tuple[str, ...], *, local: bool) -> None:
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self._local = local
        self.any = not names and not local
        self._known: set[str] = set()

    def allows(self, host: str) -> bool:
        """Whether a Host header's value is one of the names. One that is not there is not from a browser."""
        if host in self._known or self.any or not host:
            return True
        is_ours = self._is_ours(host)
        if is_ours and len(self._known) < MAX_KNOWN_HOSTS and len(host) <= MAX_KNOWN:
            self._known.add(host)
        return is_ours

    def _is_ours(self, host: str) -> bool:
        name = host_of(host).strip("[]").rstrip(".").lower()
        parsed = parse_address(name)
        if self._local and (parsed is not None or "." not in name or name.endswith(".localhost")):
            return True
        return (name if parsed is None else str(parsed)) in self._names or name.endswith(self._endings or "\0")


def host_of(header: str) -> str:
    """The host of a Host header, without its port (RFC 9110, section 7.2)."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def configured_hosts(settings: Settings) -> Hosts:
    """The names that the gateway answers to where a key is needed: those that are listed, else any."""
    names = settings.server.allowed_hosts
    return Hosts(names, local=bool(names) and is_loopback(settings.server.host))


def hosts_without_keys(settings: Settings) -> Hosts:
    """The same where no key is needed: on loopback local names alone, beside those that are listed."""
    return Hosts(settings.server.allowed_hosts, local=is_loopback(settings.server.host))
