"""Allowed hosts: the names by which clients may address the gateway.

DNS rebinding: after a page was loaded, its host name is pointed at the gateway's address. The browser then takes the
page for the gateway's own, so it may read every answer that needs no key. Its requests carry that name as their Host.
"""

from __future__ import annotations

from gateway.settings import Settings, is_loopback
from gateway.web.http.client_address import parse_address

# Maximum number of remembered spellings of our own names, each with its port.
MAX_KNOWN_HOSTS = 1024
# Longer spellings are not remembered, because a proxy passes on the name that its caller sends.
MAX_KNOWN = 300


class Hosts:
    """The names that the gateway answers to.

    Args:
        names: host names in lower case, ``*.domain`` for all below it; none for any.
        local: True if the gateway answers to names that are nobody's on the internet as well: addresses, localhost and
            all below it, and names without a dot, which no registry gives away.
    """

    def __init__(self, names: tuple[str, ...], *, local: bool) -> None:
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self.local = local
        self.any = not names and not local
        self._known: set[str] = set()

    def allows(self, host: str) -> bool:
        """Return True if a Host header's value is one of the names, or empty: a browser always sends one."""
        if host in self._known or self.any or not host:
            return True
        is_ours = self._is_ours(host)
        if is_ours and len(self._known) < MAX_KNOWN_HOSTS and len(host) <= MAX_KNOWN:
            self._known.add(host)
        return is_ours

    def _is_ours(self, host: str) -> bool:
        name = host_of(host).strip("[]").rstrip(".").lower()
        parsed = parse_address(name)
        if self.local and (parsed is not None or "." not in name or name.endswith(".localhost")):
            return True
        return (name if parsed is None else str(parsed)) in self._names or name.endswith(self._endings or "\0")


def host_of(header: str) -> str:
    """Return the host of a Host header, without its port (RFC 9110, section 7.2)."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def configured_hosts(settings: Settings) -> Hosts:
    """Return the names that the gateway answers to if keys are needed: the configured names, else any."""
    names = settings.server.allowed_hosts
    return Hosts(names, local=bool(names) and is_loopback(settings.server.host))


def hosts_without_keys(settings: Settings) -> Hosts:
    """Return the names that the gateway answers to without keys: on loopback local and configured names alone."""
    return Hosts(settings.server.allowed_hosts, local=is_loopback(settings.server.host))
