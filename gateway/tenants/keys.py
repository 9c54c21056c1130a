"""Who calls: keys, the ways in which clients carry them, and the identity that a key stands for."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gateway.settings import AnonymousSettings, AuthSettings

COOKIE = "comfyui_gateway_key"
QUERY_PARAMETER = "token"
LOCAL_TENANT = "default"


class Role(StrEnum):
    """What a key may do."""

    USER = "user"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `isolated` says whether it sees nothing but what its tenant made."""

    name: str
    tenant: str
    role: Role
    isolated: bool

    @property
    def is_admin(self) -> bool:
        """Whether it may see and touch everything."""
        return self.role is Role.ADMIN

    @property
    def sees(self) -> str | None:
        """The tenant whose jobs it sees; None for all."""
        return None if self.is_admin else self.tenant


# The one user of a gateway without keys: on loopback, or where the operator said --no-auth.
LOCAL = Identity("local", LOCAL_TENANT, Role.ADMIN, isolated=False)


class Keyring:
    """All keys, by their SHA-256. The keys themselves are not kept."""

    def __init__(self, settings: AuthSettings, anonymous: AnonymousSettings | None = None) -> None:
        anonymous = anonymous or AnonymousSettings()
        self._networks = [ipaddress.ip_network(network) for network in anonymous.networks]
        self.is_open = settings.disabled or not (settings.keys or self._networks)
        self._anonymous = Identity("anonymous", anonymous.tenant, Role.USER, isolated=settings.isolation == "isolated")
        self.is_isolated = not self.is_open and settings.isolation == "isolated"
        self._identities: dict[str, Identity] = {}
        for key in settings.keys:
            isolated = settings.isolation == "isolated"
            tenant = (key.tenant or key.name) if isolated else (key.tenant or LOCAL_TENANT)
            self._identities[key.digest] = Identity(key.name, tenant, Role(key.role), isolated)

    def identify(self, key: str | None) -> Identity | None:
        """Whose key it is; None for a wrong one. Without any keys everybody is the local user."""
        if self.is_open:
            return LOCAL
        if key is None:
            return None
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        # The look-up's time depends on the digest, which a caller can't steer towards a stored one; the comparison
        # that decides takes the same time whatever it finds.
        found = self._identities.get(digest)
        known = digest if found is not None else "0" * 64
        return found if hmac.compare_digest(known, digest) else None

    def identify_by_address(self, address: str | None) -> Identity | None:
        """Who calls without a key: the anonymous tenant, from its networks."""
        if not self._networks or address is None:
            return None
        try:
            caller = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return None
        # A socket that listens on both families shows an IPv4 caller as ::ffff:a.b.c.d (RFC 4291, section 2.5.5.2).
        mapped = caller.ipv4_mapped if isinstance(caller, ipaddress.IPv6Address) else None
        is_known = any((mapped or caller) in network for network in self._networks)
        return self._anonymous if is_known else None


def presented_key(headers: Mapping[str, str], query: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
    """The key that a request carries: X-API-Key, Bearer, Basic (the password), ``?token=`` or the cookie."""
    key = headers.get("X-API-Key")
    if key:
        return key
    scheme, _, credentials = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    if scheme.lower() == "basic":
        return _basic_password(credentials.strip())
    return query.get(QUERY_PARAMETER) or cookies.get(COOKIE) or None


def _basic_password(credentials: str) -> str | None:
    """The password of Basic credentials (RFC 7617); a client that has but one field may put the key in as user.

    None for what is not base64, not even ASCII, or not UTF-8 inside.
    """
    try:
        user, _, password = base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")
    except ValueError:
        return None
    return password or user or None
