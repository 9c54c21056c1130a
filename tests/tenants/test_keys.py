"""Keys and what they stand for."""

from __future__ import annotations

import base64
import hashlib

import pytest

from gateway.settings import AnonymousSettings, AuthSettings, KeySettings
from gateway.tenants.keys import LOCAL, Keyring, Role, presented_key


def basic(text: str) -> dict[str, str]:
    """Basic credentials."""
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "query", "cookies", "key"),
    [
        ({"X-API-Key": "k"}, {}, {}, "k"),
        ({"Authorization": "Bearer k"}, {}, {}, "k"),
        ({"Authorization": "bearer  k "}, {}, {}, "k"),
        (basic("u:k"), {}, {}, "k"),
        (basic("k:"), {}, {}, "k"),
        (basic("u:k:with:colons"), {}, {}, "k:with:colons"),
        ({"Authorization": "Basic ###"}, {}, {}, None),
        ({}, {"token": "k"}, {}, "k"),
        ({}, {}, {"comfyui_gateway_key": "k"}, "k"),
        ({"X-API-Key": "a"}, {"token": "b"}, {}, "a"),
        ({}, {}, {}, None),
    ],
)
def test_carriers(headers: dict[str, str], query: dict[str, str], cookies: dict[str, str], key: str | None) -> None:
    assert presented_key(headers, query, cookies) == key


def test_keyring() -> None:
    digest = hashlib.sha256(b"secret-key-1").hexdigest()
    keys = (KeySettings(name="a", sha256=digest), KeySettings(name="b", key="secret-key-2", role="admin", tenant="t"))
    ring = Keyring(AuthSettings(keys=keys))
    a, b = ring.identify("secret-key-1"), ring.identify("secret-key-2")
    assert a is not None
    assert b is not None
    assert (a.tenant, a.sees, a.isolated) == ("a", "a", True)
    assert (b.tenant, b.sees) == ("t", None)
    for wrong in (None, "", "secret-key-3", digest, "\ud800"):
        assert ring.identify(wrong) is None
    shared = Keyring(AuthSettings(keys=keys, isolation="shared")).identify("secret-key-1")
    assert shared is not None
    assert not shared.isolated


def test_without_keys_everybody_is_the_local_user() -> None:
    assert Keyring(AuthSettings()).identify(None) is LOCAL


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
        identity = keyring.identify_by_address(address)
        assert (identity is not None) == known, address
        assert identity is None or (identity.tenant, identity.role) == ("guests", Role.USER)
    assert Keyring(settings).identify_by_address("10.1.2.3") is None
    assert not Keyring(AuthSettings(), AnonymousSettings(networks=("10.0.0.0/8",))).is_open
