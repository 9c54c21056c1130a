"""Keys by their digest, the identity that a key stands for, and its expiry."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import string
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.settings import AnonymousSettings, AuthSettings
from gateway.tenants.networks import network_of

LOCAL_TENANT = "default"
# The mark by which secret scanners, and people who find one in a file, recognize a key.
PREFIX = "cgw_"
_ALPHABET = string.ascii_letters + string.digits
# 62^32 are 190 bits.
_SECRET_LENGTH = 32
# Maximum number of remembered networks from which a key was used, and the time for which they are remembered.
MAX_NETWORKS = 16
REMEMBER_SECONDS = 86_400.0


class Role(StrEnum):
    """Permissions of a key."""

    USER = "user"
    ADMIN = "admin"
    METRICS = "metrics"


class Source(StrEnum):
    """Place of a key: FILE is the configuration, STORE the journal."""

    FILE = "file"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. An `isolated` one sees nothing but its own tenant's jobs and files; a `keyless` one has no key."""

    name: str
    tenant: str
    role: Role
    isolated: bool
    keyless: bool = False

    @property
    def noun(self) -> str:
        """Return the words for this caller in a refusal. If only a tenant is known, refusals say `policy.CALLER`."""
        return "a caller without a key" if self.keyless else f"the key '{self.name}'"

    @property
    def is_admin(self) -> bool:
        """Return True if the caller has the role of an admin, who may see and change everything."""
        return self.role is Role.ADMIN

    @property
    def sees(self) -> str | None:
        """Return the tenant whose jobs the caller sees; None for all tenants."""
        return None if self.is_admin else self.tenant


# The one user of a gateway without keys: on loopback, or where the operator said --no-auth.
LOCAL = Identity("local", LOCAL_TENANT, Role.ADMIN, isolated=False, keyless=True)


@dataclass(slots=True, eq=False)
class Grant:
    """Permission to call: one secret of a key, a browser session made with it (`within` that), or no key at all.

    `until` is in seconds since 1970. The gateway checks it with each request, and now and then for each open socket.
    """

    identity: Identity
    until: float = math.inf
    key: Key | None = None
    within: Grant | None = None

    def holds(self, now: float) -> bool:
        """Return True if the grant is valid at `now`, and so is the grant that it is `within`."""
        return now < self.until and (self.within is None or self.within.holds(now))

    def end(self) -> None:
        """End the grant: from now on it is not valid."""
        self.until = 0.0


@dataclass(slots=True, eq=False)
class Key:
    """A key as the gateway knows it: never the secret itself. Times are seconds since 1970."""

    identity: Identity
    source: Source
    digest: str
    tenant: str = ""
    created: float | None = None
    expires: float | None = None
    # The digest before the last rotation, and the time until which that secret is valid.
    old_digest: str | None = None
    old_until: float | None = None
    used_at: float | None = None
    # The client address of the last use.
    address: str | None = None
    _networks: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the key, which is unique."""
        return self.identity.name

    def use(self, address: str | None, now: float) -> None:
        """Note a use of the key: its time, its client address, and the network of that address."""
        self.used_at, self.address = now, address
        if address is None:
            return
        network = network_of(address)
        self._networks.pop(network, None)
        self._networks[network] = now
        if len(self._networks) > MAX_NETWORKS:
            del self._networks[next(iter(self._networks))]

    def was_used_from(self, address: str, now: float) -> bool:
        """Return True if the key was used from the network of `address` in the last day."""
        used_at = self._networks.get(network_of(address))
        return used_at is not None and now - used_at < REMEMBER_SECONDS


class FileVisibility(StrEnum):
    """Files that a tenant may name: its OWN; UNCLAIMED, which adds the files of nobody (for a team); or ALL."""

    OWN = "own"
    UNCLAIMED = "unclaimed"
    ALL = "all"


class Keyring:
    """All keys, by their SHA-256. The secrets themselves are not kept.

    The keyring is open if keys are disabled. It is open, too, if there are no keys and no anonymous networks, and the
    store never had a key. Then everybody is the one local user.
    """

    def __init__(self, settings: AuthSettings, anonymous: AnonymousSettings | None = None) -> None:
        anonymous = anonymous or AnonymousSettings()
        self._networks = [ipaddress.ip_network(network) for network in anonymous.networks]
        self.is_disabled = settings.disabled
        self.is_open = settings.disabled or not (settings.keys or self._networks)
        self.local = Grant(LOCAL)
        self._shields = settings.isolation == "isolated"
        is_apart = self._is_apart(anonymous.tenant)
        self._anonymous = Grant(Identity("anonymous", anonymous.tenant, Role.USER, is_apart, keyless=True))
        self._grants: dict[str, Grant] = {}
        self._keys: dict[str, Key] = {}
        # Number of keys of a role that stand for each tenant. Expired keys count, because their tenant's files remain.
        self._tenants = {role: Counter[str]() for role in Role}
        if self._networks:
            self._tenants[Role.USER][anonymous.tenant] = 1
        for key in settings.keys:
            expires = key.expires.timestamp() if key.expires is not None else None
            identity = self.identity_of(key.name, key.role, key.tenant)
            self.add(Key(identity, Source.FILE, key.digest, key.tenant, expires=expires))

    @property
    def is_isolated(self) -> bool:
        """Return True if the gateway isolates all tenants from each other."""
        return not self.is_open and self._shields

    def visibility(self, tenant: str) -> FileVisibility:
        """Return the visibility of files for a tenant."""
        if self.is_open:
            return FileVisibility.ALL
        return FileVisibility.OWN if self._is_apart(tenant) else FileVisibility.UNCLAIMED

    def is_alone(self, tenant: str) -> bool:
        """Return True if users' keys and anonymous networks stand for no other tenant, or the gateway is open.

        Keys of admins and of monitoring don't count. An expired key counts until it is removed.
        """
        users = self._tenants[Role.USER]
        return self.is_open or not users or (len(users) == 1 and tenant in users)

    @property
    def has_strangers(self) -> bool:
        """Return True if users' keys and anonymous networks stand for several tenants, so that none is alone."""
        return not self.is_open and len(self._tenants[Role.USER]) > 1

    @property
    def admin_tenants(self) -> Set[str]:
        """Return the tenants of the admins' keys, as they are now."""
        return self._tenants[Role.ADMIN].keys()

    @property
    def user_tenants(self) -> Set[str]:
        """Return the tenants that users' keys and anonymous networks stand for, as they are now."""
        return self._tenants[Role.USER].keys()

    def has_tenant(self, tenant: str) -> bool:
        """Return True if a key, or an anonymous network, stands for a tenant. An expired key counts."""
        return any(tenant in tenants for tenants in self._tenants.values())

    def _is_apart(self, tenant: str) -> bool:
        return self._shields or tenant != LOCAL_TENANT

    def identity_of(self, name: str, role: str, tenant: str) -> Identity:
        """Return the identity that a key of this name, role and tenant stands for."""
        owner = (tenant or name) if self._shields else (tenant or LOCAL_TENANT)
        return Identity(name, owner, Role(role), self._is_apart(owner))

    def close(self) -> None:
        """Close the open keyring, because the store has keys, or had some. If keys are disabled, do nothing."""
        if not self.is_disabled:
            self.is_open = False
            self.local.end()

    def add(self, key: Key) -> None:
        """Accept a key from now on; accept its old secret, too, until that expires."""
        if (before := self._keys.get(key.name)) is not None:
            self._uncount(before.identity)
        self._keys[key.name] = key
        self._tenants[key.identity.role][key.identity.tenant] += 1
        expires = math.inf if key.expires is None else key.expires
        self._grants[key.digest] = Grant(key.identity, expires, key)
        if key.old_digest is not None and key.old_until is not None:
            self._grants[key.old_digest] = Grant(key.identity, min(key.old_until, expires), key)

    def replace(self, key: Key, by: Key) -> None:
        """Replace a key by its rotated form. Sockets and browser sessions of the old secret last as long as that."""
        older = self._grants.pop(key.old_digest, None) if key.old_digest is not None else None
        if older is not None:
            older.end()
        old = self._grants[key.digest]
        self.add(by)
        # Keep the same grant object, because sockets and browser sessions that were opened with it end with it.
        old.until, old.key = self._grants[key.digest].until, by
        self._grants[key.digest] = old

    def remove(self, key: Key) -> None:
        """Accept a key no more, and end everything that was opened with it."""
        if (before := self._keys.pop(key.name, None)) is not None:
            self._uncount(before.identity)
        for digest in (key.digest, key.old_digest):
            grant = self._grants.pop(digest, None) if digest is not None else None
            if grant is not None:
                grant.end()

    def _uncount(self, identity: Identity) -> None:
        counts = self._tenants[identity.role]
        counts[identity.tenant] -= 1
        if not counts[identity.tenant]:
            del counts[identity.tenant]

    def grant(self, digest: str) -> Grant | None:
        """Return the grant of the key with this SHA-256, also if it has expired; None if there is no such key."""
        # The look-up's time depends on the digest, which a caller can't steer towards a stored one; the comparison
        # that decides takes the same time whatever it finds.
        found = self._grants.get(digest)
        known = digest if found is not None else "0" * 64
        return found if hmac.compare_digest(known, digest) else None

    def key(self, name: str) -> Key | None:
        """Return the key with this name; None if there is none."""
        return self._keys.get(name)

    def all(self) -> Iterable[Key]:
        """Return all keys."""
        return self._keys.values()

    def __len__(self) -> int:
        return len(self._keys)

    def by_address(self, address: str | None) -> Grant | None:
        """Return the grant of the anonymous tenant if the address is in its networks, else None."""
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


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key as a request carries it, in lowercase hexadecimal. Any text has one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def mint(prefix: str = PREFIX) -> str:
    """Return a new secret: 190 bits from the system's generator, behind a prefix that tells its kind."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
