"""Keys, what they stand for, and until when."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.settings import AnonymousSettings, AuthSettings, KeySettings
from gateway.settings.base import checked_name
from gateway.tenants.keys import LOCAL, MAX_NETWORKS, Grant, Identity, Key, Keyring, Role, Source, digest_of, mint
from gateway.tenants.lifetimes import NoTime, time_of
from gateway.tenants.networks import network_of

SECRET = "secret-key-1"


def stored(name: str, secret: str, **more: float | str | None) -> Key:
    """A key of the store."""
    return Key(Identity(name, name, Role.USER, isolated=True), Source.STORE, digest_of(secret), **more)  # type: ignore[arg-type]


def holds(keyring: Keyring, secret: str, now: float = 1000.0) -> bool:
    """Whether a key lets somebody in."""
    grant = keyring.grant(digest_of(secret))
    return grant is not None and grant.holds(now)


def test_keyring() -> None:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    keys = (KeySettings(name="a", sha256=digest), KeySettings(name="b", key="secret-key-2", role="admin", tenant="t"))
    ring = Keyring(AuthSettings(keys=keys))
    a, b = (ring.grant(digest_of(secret)) for secret in (SECRET, "secret-key-2"))
    assert a is not None
    assert b is not None
    assert (a.identity.tenant, a.identity.sees, a.identity.isolated) == ("a", "a", True)
    assert (b.identity.tenant, b.identity.sees) == ("t", None)
    for wrong in ("", "secret-key-3", digest, "\ud800", SECRET + " ", SECRET.upper(), "\udcff" + SECRET):
        assert ring.grant(digest_of(wrong)) is None
    shared = Keyring(AuthSettings(keys=keys, isolation="shared")).grant(digest)
    assert shared is not None
    assert not shared.identity.isolated


def test_without_keys_everybody_is_the_local_user_until_there_are_some() -> None:
    ring = Keyring(AuthSettings())
    assert ring.is_open
    assert not ring.is_isolated
    assert ring.local.identity is LOCAL
    ring.close()
    assert not ring.is_open
    assert ring.is_isolated
    assert not ring.local.holds(0)
    disabled = Keyring(AuthSettings(disabled=True))
    disabled.close()
    assert disabled.is_open


def test_a_key_expires() -> None:
    expires = datetime(2026, 12, 24, tzinfo=UTC)
    ring = Keyring(AuthSettings(keys=(KeySettings(name="a", key=SECRET, expires=expires),)))
    assert holds(ring, SECRET, expires.timestamp() - 1)
    assert not holds(ring, SECRET, expires.timestamp())


def test_rotation_and_revocation_end_what_was_opened_with_the_key() -> None:
    ring = Keyring(AuthSettings())
    key = stored("a", "one")
    ring.add(key)
    opened = ring.grant(digest_of("one"))
    assert opened is not None
    signed_in = Grant(opened.identity, 5000.0, key, opened)
    rotated = replace(key, digest=digest_of("two"), old_digest=key.digest, old_until=2000.0)
    ring.replace(key, rotated)
    assert holds(ring, "two", math.nextafter(math.inf, 0))
    for now, still in ((1999.0, True), (2000.0, False)):
        assert holds(ring, "one", now) == opened.holds(now) == signed_in.holds(now) == still
    # The one that is still valid from the rotation before ends with the next.
    ring.replace(rotated, replace(rotated, digest=digest_of("three"), old_digest=rotated.digest, old_until=1500.0))
    assert ring.grant(digest_of("one")) is None
    assert not opened.holds(1000.0)
    assert not signed_in.holds(1000.0)
    assert holds(ring, "two")
    assert holds(ring, "three")
    last = ring.key("a")
    assert last is not None
    grants = [ring.grant(digest_of(secret)) for secret in ("two", "three")]
    ring.remove(last)
    assert ring.key("a") is None
    for grant in grants:
        assert grant is not None
        assert not grant.holds(0)
    assert not holds(ring, "two")
    assert not holds(ring, "three")


def test_an_old_secret_never_outlives_its_key() -> None:
    ring = Keyring(AuthSettings())
    key = stored("a", "one", expires=1500.0)
    ring.add(key)
    ring.replace(key, replace(key, digest=digest_of("two"), old_digest=key.digest, old_until=9000.0))
    assert holds(ring, "one", 1499.0)
    assert not holds(ring, "one", 1500.0)
    restarted = Keyring(AuthSettings())
    found = ring.key("a")
    assert found is not None
    restarted.add(found)
    assert holds(restarted, "one", 1499.0)
    assert not holds(restarted, "one", 1500.0)


def test_from_where_a_key_was_used() -> None:
    key = stored("a", "one")
    key.use("10.0.0.1", 100.0)
    key.use("2001:db8::1", 100.0)
    key.use(None, 100.0)
    assert key.was_used_from("10.0.0.1", 101.0)
    assert key.was_used_from("::ffff:10.0.0.1", 101.0)
    assert key.was_used_from("2001:db8::ffff", 101.0)
    assert not key.was_used_from("2001:db8:0:1::1", 101.0)
    assert not key.was_used_from("10.0.0.2", 101.0)
    assert not key.was_used_from("10.0.0.1", 100.0 + 86_400)
    for n in range(MAX_NETWORKS):
        key.use(f"10.1.0.{n}", 200.0)
    assert not key.was_used_from("10.0.0.1", 201.0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_secret_is_long_and_known_by_its_prefix() -> None:
    made = {mint() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"cgw_[A-Za-z0-9]{32}", secret) for secret in made)
    assert len({secret[4:12] for secret in made}) == 1000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 1000 + 30 * 86_400),
        ("12h", 44_200),
        (" 90s ", 1090),
        ("4w", 2_420_200),
        ("1970-01-01T00:30:00Z", 1800),
        ("1970-01-02", 86_400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("999999999w", 253_402_300_799),
    ],
)
def test_times_that_people_write(text: str, seconds: float) -> None:
    assert time_of(text, 1000.0) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "tomorrow", "30 d", "9999999999s", "\u0663d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(NoTime, match="30d"):
        time_of(text, 1000.0)


@pytest.mark.parametrize("name", ["a", "anna@example.com", "A-1.b_c+d", "x" * 64])
def test_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a\nb", "a\n", "ä", "x" * 65, 'a"b', "a{b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="letters"):
        checked_name(name)


def test_callers_without_a_key() -> None:
    settings = AuthSettings(keys=(KeySettings(name="a", key="key-a-123456"),))
    keyring = Keyring(settings, AnonymousSettings(networks=("10.1.0.0/16", "fd00::/8"), tenant="guests"))
    for address, known in (
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00::1", True),
        ("10.2.0.1", False),
        ("::1", False),
        ("no address", False),
        (None, False),
    ):
        grant = keyring.by_address(address)
        assert (grant is not None) == known, address
        assert grant is None or (grant.identity.tenant, grant.identity.role) == ("guests", Role.USER)
    assert Keyring(settings).by_address("10.1.2.3") is None
    assert not Keyring(AuthSettings(), AnonymousSettings(networks=("10.0.0.0/8",))).is_open


def keyed(name: str, role: str = "user", tenant: str = "") -> KeySettings:
    """A key of the configuration."""
    return KeySettings(name=name, key=f"secret-of-{name}", role=role, tenant=tenant)


@pytest.mark.parametrize(
    ("keys", "isolation", "alone"),
    [
        ([keyed("anna")], "isolated", ["anna"]),
        ([keyed("anna"), keyed("ben")], "isolated", []),
        ([keyed("anna", tenant="studio"), keyed("ben", tenant="studio")], "isolated", ["studio"]),
        ([keyed("anna"), keyed("ops", "admin"), keyed("eye", "metrics")], "isolated", ["anna"]),
        ([keyed("anna"), keyed("ben")], "shared", ["default"]),
        ([keyed("anna"), keyed("ben", tenant="guests")], "shared", []),
        ([keyed("ops", "admin")], "isolated", ["anna", "ops"]),
    ],
)
def test_who_is_alone(keys: list[KeySettings], isolation: str, alone: list[str]) -> None:
    ring = Keyring(AuthSettings(keys=tuple(keys), isolation=isolation))
    tenants = ("anna", "studio", "default", "ops", "guests", "eye") if len(keys) > 1 else ("anna", "ops")
    assert sorted(tenant for tenant in tenants if ring.is_alone(tenant)) == alone


def test_guests_count_and_an_open_gateway_has_but_one() -> None:
    guests = AnonymousSettings(networks=("10.0.0.0/8",), tenant="guests")
    assert not Keyring(AuthSettings(keys=(keyed("anna"),)), guests).is_alone("anna")
    assert Keyring(AuthSettings(keys=(keyed("ops", "admin"),)), guests).is_alone("guests")
    ring = Keyring(AuthSettings())
    assert ring.is_alone("anybody")
    disabled = Keyring(AuthSettings(disabled=True, keys=(keyed("anna"), keyed("ben"))))
    assert disabled.is_alone("anna")
    assert not disabled.has_strangers
    assert Keyring(AuthSettings(keys=(keyed("anna"),)), guests).has_strangers


def test_who_is_alone_follows_the_keys() -> None:
    ring = Keyring(AuthSettings(keys=(keyed("anna"), keyed("ops", "admin", "staff"))))
    assert (set(ring.admin_tenants), set(ring.user_tenants)) == ({"staff"}, {"anna"})
    ben = stored("ben", SECRET, expires=1.0)
    ring.add(ben)
    # It expired long ago, and its tenant's files are still there.
    assert not ring.is_alone("anna")
    rotated = replace(ben, digest=digest_of("another-secret"), old_digest=ben.digest, old_until=2.0)
    ring.replace(ben, rotated)
    assert set(ring.user_tenants) == {"anna", "ben"}
    ring.remove(rotated)
    assert ring.is_alone("anna")
    ring.remove(rotated)
    assert set(ring.user_tenants) == {"anna"}
    boss = replace(stored("boss", "a-third-secret"), identity=Identity("boss", "boss", Role.ADMIN, isolated=True))
    ring.add(boss)
    assert set(ring.admin_tenants) == {"staff", "boss"}
    ring.remove(boss)
    assert set(ring.admin_tenants) == {"staff"}
