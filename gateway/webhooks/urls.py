"""Check the URL of a webhook, as far as its text tells. Pure.

The parser is the one that connects (yarl, as aiohttp uses it), and the text that it gives back is the one to keep, so
that no other reading of the same text exists. Addresses behind a name are checked at each attempt (`receivers.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network

from yarl import URL

from gateway.settings.webhooks import MAX_URL
from gateway.webhooks.addresses import Network, Reach, parsed, reach

_MAX_HOST = 253
_UNFIT = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\\]")
_AUTHORITY = re.compile(r"[^:/?#]*://([^/?#]*)")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# If the last label is such a number, resolvers read the name as an IPv4 address (WHATWG URL, "ends in a number").
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class BadUrl(ValueError):
    """A URL that no webhook may have. The text tells the reason, and repeats no part of the URL: it may be secret."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Bounds of URLs and addresses, from the settings.

    Args:
        allow_http: permit http beside https.
        allow_networks: networks that are not public, and to which webhooks may be delivered, at any port.
        ports: the ports that are permitted at public addresses; None permits any.
    """

    allow_http: bool = False
    allow_networks: tuple[Network, ...] = ()
    ports: frozenset[int] | None = frozenset({443})

    @classmethod
    def of(cls, allow_http: bool, allow_networks: Iterable[str], ports: Iterable[int] | None) -> Rules:
        """Make rules from settings."""
        networks = tuple(ip_network(text) for text in allow_networks)
        return cls(allow_http, networks, None if ports is None else frozenset(ports))

    def is_port_allowed(self, port: int) -> bool:
        """Return True if a public address may be reached at this port."""
        return self.ports is None or port in self.ports


def check_url(text: str, rules: Rules) -> str:
    """Return a webhook's URL in its one spelling, which is the text to keep and to send to.

    Raises:
        BadUrl: no webhook may have this URL.
    """
    return str(parse_url(text, rules))


def parse_url(text: str, rules: Rules) -> URL:
    """Return a webhook's URL, parsed: its host in ASCII and without a full stop at the end, no fragment.

    Raises:
        BadUrl: no webhook may have this URL.
    """
    try:
        url = _split(text)
        port, length = url.port, len(str(url))
    except BadUrl:
        raise
    except (ValueError, IndexError):
        # The text of such an error may repeat the URL. yarl looks for a host behind the "@" of https://[::1]@, and for
        # a port only when it is asked for it.
        raise BadUrl("the URL is malformed") from None
    if length > MAX_URL:
        raise BadUrl(f"the URL has more than {MAX_URL} characters when it is percent-encoded")
    if url.scheme == "http" and not rules.allow_http:
        raise BadUrl("the URL must begin with https:// (webhooks.allow_http permits http)")
    host = url.raw_host or ""
    address = parsed(host)
    # The addresses of a name may be in these networks.
    is_listed = bool(rules.allow_networks)
    if address is not None:
        found = reach(address, rules.allow_networks)
        if found is Reach.REFUSED:
            raise BadUrl("the URL's address is not public")
        is_listed = found is Reach.LISTED
    elif not _is_name(host):
        raise BadUrl("the URL's host is neither a name nor an address in its usual form")
    if not port or not (is_listed or rules.is_port_allowed(port)):
        raise BadUrl("the URL's port is not permitted (webhooks.ports)")
    return url


def _split(text: str) -> URL:
    """Parse a URL, whatever the rules.

    Raises:
        BadUrl: it is no http or https URL with a host, or holds what no webhook needs.
        ValueError, IndexError: yarl can't read it.
    """
    if len(text) > MAX_URL:
        raise BadUrl(f"the URL has more than {MAX_URL} characters")
    if _UNFIT.search(text):
        raise BadUrl("the URL holds a blank, a control character or a backslash; percent-encode it")
    authority = _AUTHORITY.match(text)
    url = URL(text)
    if url.scheme not in ("https", "http"):
        raise BadUrl("the URL must begin with https://")
    if authority is None or not url.raw_host:
        raise BadUrl("the URL has no host")
    if url.raw_user is not None or url.raw_password is not None or "@" in authority[1]:
        raise BadUrl("the URL holds a user or a password; sign with a secret instead")
    if "[" in authority[1] and not isinstance(parsed(url.raw_host), IPv6Address):
        raise BadUrl("the URL's host is malformed")
    host = url.raw_host.removesuffix(".")
    return url.with_fragment(None) if host == url.raw_host else url.with_fragment(None).with_host(host)


def _is_name(host: str) -> bool:
    """Return True if a host is a name that no resolver takes for a number."""
    labels = host.split(".")
    return (
        len(host) <= _MAX_HOST
        and all(_LABEL.fullmatch(label) for label in labels)
        and not _NUMBER.fullmatch(labels[-1])
    )
