"""Signatures of deliveries: the vectors of the specification, and a library of other people that verifies them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.settings.webhooks import MAX_SECRET, MIN_SECRET, secret_key
from gateway.webhooks.signing import new_secret, sign, signed_headers

VECTORS = [
    (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "evt_1",
        1700000000,
        b'{"type":"job.succeeded","data":{"id":"a"}}',
        "v1,RBejRn4K7hruFJPKyadX5XuOliMx7iR/8aSsjcfAfVo=",
    ),
]


@pytest.mark.parametrize(("secret", "event_id", "timestamp", "body", "signature"), VECTORS)
def test_vectors(secret: str, event_id: str, timestamp: int, body: bytes, signature: str) -> None:
    assert sign(secret, event_id, timestamp, body) == signature
    assert sign(secret.removeprefix("whsec_").rstrip("="), event_id, timestamp, body) == signature


@settings(max_examples=25)
@given(st.text(), st.integers(0, 2**33))
def test_the_library_signs_alike(text: str, timestamp: int) -> None:
    """The library writes UTC into the time that it is given, so it gets UTC."""
    secret, body = VECTORS[0][0], text.encode()
    theirs = Webhook(secret).sign("evt_a", datetime.fromtimestamp(timestamp, UTC), text)
    assert sign(secret, "evt_a", timestamp, body) == theirs


def test_the_library_verifies_under_both_secrets_of_a_rotation() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    body = '{"a": "é"}'.encode()
    headers = signed_headers([new, old], "evt_1", int(datetime.now(UTC).timestamp()), body)
    assert headers["webhook-signature"].count(" ") == 1
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers) == {"a": "é"}
    for secret, sent in ((other, body), (new, body + b" ")):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(sent, headers)


def test_without_a_secret_there_is_no_signature() -> None:
    assert signed_headers([], "evt_1", 5, b"{}") == {"webhook-id": "evt_1", "webhook-timestamp": "5"}


def test_new_secrets() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert len(secrets) == 50
    assert all(MIN_SECRET <= len(secret_key(secret)) <= MAX_SECRET for secret in secrets)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "whsec_" + "A" * 88, "whsec_ä" * 9, "whsec_!" * 20])
def test_malformed_secrets_are_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError) as raised:
        sign(secret, "evt_1", 5, b"{}")
    assert secret.removeprefix("whsec_") not in str(raised.value) or not secret.removeprefix("whsec_")


def test_an_id_with_a_full_stop_is_refused() -> None:
    """Else ``a`` at ``1.2`` and ``a.1`` at ``2`` would be one text."""
    with pytest.raises(ValueError):
        sign(VECTORS[0][0], "evt.1", 5, b"{}")
