"""Keys by their digest, the identity that a key stands for, and when it expires."""

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
# What secret scanners, and people who find one in a file, know a key by.
PREFIX = "cgw_"
_ALPHABET = string.ascii_letters + string.digits
# 62^32 are 190 bits.
_SECRET_LENGTH = 32
# How many of the networks that a key was used from are remembered, and for how long.
MAX_NETWORKS = 16
REMEMBER_SECONDS = 86_400.0


class Role(StrEnum):
    """What a key may do."""

    USER = "user"
    ADMIN = "admin"
    METRICS = "metrics"


class Source(StrEnum):
    """Where a key is kept: in the configuration, or in the store."""

    FILE = "file"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `isolated` says whether it sees nothing but what its tenant made, `keyless` whether it has no key."""

    name: str
    tenant: str
    role: Role
    isolated: bool
    keyless: bool = False

    @property
    def noun(self) -> str:
        """Return what a refusal calls it. Where only a tenant is known, refusals say `policy.CALLER`."""
        return "a caller without a key" if self.keyless else f"the key '{self.name}'"

    @property
    def is_admin(self) -> bool:
        """Whether it may see and touch everything."""
        return self.role is Role.ADMIN

    @property
    def sees(self) -> str | None:
        """The tenant whose jobs it sees; None for all."""
        return None if self.is_admin else self.tenant


# The one user of a gateway without keys: on loopback, or where the operator said --no-auth.
LOCAL = Identity("local", LOCAL_TENANT, Role.ADMIN, isolated=False, keyless=True)


@dataclass(slots=True, eq=False)
class Grant:
    """What lets a caller in: one secret of a key, a sign-in made with it (`within` that), or no key at all.

    `until` is in seconds since 1970. It is looked at with each request, and now and then for each open socket.
    """

    identity: Identity
    until: float = math.inf
    key: Key | None = None
    within: Grant | None = None

    def holds(self, now: float) -> bool:
        """Whether it still lets its holder in."""
        return now < self.until and (self.within is None or self.within.holds(now))

    def end(self) -> None:
        """From now on it lets nobody in."""
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
    # What it was before it was rotated, and until when that holds.
    old_digest: str | None = None
    old_until: float | None = None
    used_at: float | None = None
    # From where that was.
    address: str | None = None
    _networks: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, of which there is one."""
        return self.identity.name

    def use(self, address: str | None, now: float) -> None:
        """It let somebody in."""
        self.used_at, self.address = now, address
        if address is None:
            return
        network = network_of(address)
        self._networks.pop(network, None)
        self._networks[network] = now
        if len(self._networks) > MAX_NETWORKS:
            del self._networks[next(iter(self._networks))]

    def was_used_from(self, address: str, now: float) -> bool:
        """Whether it let somebody in from there in the last day."""
        used_at = self._networks.get(network_of(address))
        return used_at is not None and now - used_at < REMEMBER_SECONDS


class FileVisibility(StrEnum):
    """Which files a tenant may name: its OWN, those that are nobody's as well (UNCLAIMED: a team), or ALL."""

    OWN = "own"
    UNCLAIMED = "unclaimed"
    ALL = "all"


class Keyring:
    """All keys, by their SHA-256. The keys themselves are not kept.

    While there are none, and there never was one in the store, it is open: everybody is the one local user.
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
        # How many keys of a role stand for each tenant. One of them may have expired: its tenant's files are there.
        self._tenants = {role: Counter[str]() for role in Role}
        if self._networks:
            self._tenants[Role.USER][anonymous.tenant] = 1
        for key in settings.keys:
            expires = key.expires.timestamp() if key.expires is not None else None
            identity = self.identity_of(key.name, key.role, key.tenant)
            self.add(Key(identity, Source.FILE, key.digest, key.tenant, expires=expires))

    @property
    def is_isolated(self) -> bool:
        """Whether all tenants are shielded from each other."""
        return not self.is_open and self._shields

    def visibility(self, tenant: str) -> FileVisibility:
        """Which files a tenant may name."""
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
        """Whom a key stands for."""
        owner = (tenant or name) if self._shields else (tenant or LOCAL_TENANT)
        return Identity(name, owner, Role(role), self._is_apart(owner))

    def close(self) -> None:
        """There are keys in the store, or were: nobody is let in without one any more, unless keys are disabled."""
        if not self.is_disabled:
            self.is_open = False
            self.local.end()

    def add(self, key: Key) -> None:
        """Let a key in from now on, in its old form as long as that holds."""
        if (before := self._keys.get(key.name)) is not None:
            self._uncount(before.identity)
        self._keys[key.name] = key
        self._tenants[key.identity.role][key.identity.tenant] += 1
        expires = math.inf if key.expires is None else key.expires
        self._grants[key.digest] = Grant(key.identity, expires, key)
        if key.old_digest is not None and key.old_until is not None:
            self._grants[key.old_digest] = Grant(key.identity, min(key.old_until, expires), key)

    def replace(self, key: Key, by: Key) -> None:
        """Put a rotated key in the place of what it was; sockets and sign-ins of its old secret live on with that."""
        older = self._grants.pop(key.old_digest, None) if key.old_digest is not None else None
        if older is not None:
            older.end()
        old = self._grants[key.digest]
        self.add(by)
        # The same object: what was opened with it ends with it.
        old.until, old.key = self._grants[key.digest].until, by
        self._grants[key.digest] = old

    def remove(self, key: Key) -> None:
        """Let it in no more; all that was opened with it ends."""
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
        """What a key with this SHA-256 is good for, also when its time is over; None for a wrong one."""
        # The look-up's time depends on the digest, which a caller can't steer towards a stored one; the comparison
        # that decides takes the same time whatever it finds.
        found = self._grants.get(digest)
        known = digest if found is not None else "0" * 64
        return found if hmac.compare_digest(known, digest) else None

    def key(self, name: str) -> Key | None:
        """A key by its name."""
        return self._keys.get(name)

    def all(self) -> Iterable[Key]:
        """All of them."""
        return self._keys.values()

    def __len__(self) -> int:
        return len(self._keys)

    def by_address(self, address: str | None) -> Grant | None:
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


def digest_of(key: str) -> str:
    """SHA-256 of a key as a request carries it, whatever it holds, in lowercase hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def mint(prefix: str = PREFIX) -> str:
    """A new secret: 190 bits from the system's generator, behind a prefix that says what it is."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))
