"""Sign deliveries as Standard Webhooks 1.0.0 has it: HMAC-SHA256 under secrets that begin with ``whsec_``. Pure."""

from __future__ import annotations

import base64
import hmac
import secrets as random
from collections.abc import Sequence

from gateway.settings.webhooks import SECRET_PREFIX, secret_key

# Bytes of a new secret.
NEW_SECRET = 32


def new_secret() -> str:
    """Return a fresh secret, in the form in which its owner gets it."""
    return SECRET_PREFIX + base64.b64encode(random.token_bytes(NEW_SECRET)).decode()


def sign(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of one attempt, such as ``v1,…``. `timestamp` is the Unix time of the attempt.

    Raises:
        ValueError: the secret is malformed, or the id holds a full stop, with which two texts could have one signature.
    """
    if "." in event_id:
        raise ValueError("the id of a webhook must not hold a full stop")
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(secret_key(secret), signed, "sha256")).decode()


def signed_headers(secrets: Sequence[str], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of one attempt: a signature for each secret. Without a secret there is no signature.

    Raises:
        ValueError: see `sign`.
    """
    headers = {"webhook-id": event_id, "webhook-timestamp": str(timestamp)}
    if secrets:
        headers["webhook-signature"] = " ".join(sign(secret, event_id, timestamp, body) for secret in secrets)
    return headers
