"""The end of a certificate's validity, read from its file: Python's ssl tells it of a peer's certificate alone."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# Tags of DER (X.690): the version, a time with a year of two digits, one with four.
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


def expiry_of(pem: str) -> float | None:
    """Return the end of the first certificate of a PEM file, in seconds since 1970; None if it can't be read."""
    found = _PEM.search(pem)
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(found[0])) if found is not None else None
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """Return notAfter (RFC 5280, section 4.1)."""
    _, certificate, _ = _item(der)
    _, signed, _ = _item(certificate)
    if signed[0] == _VERSION:
        _, _, signed = _item(signed)
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, signed = _item(signed)
    _, validity, _ = _item(signed)
    _, _, rest = _item(validity)
    tag, text, _ = _item(rest)
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError(f"not a time: {tag}")
    shown = text.decode("ascii")
    if tag == _UTC_TIME:
        # Years from 50 on are of the last century (RFC 5280, section 4.1.2.5.1).
        shown = ("19" if shown[:2] >= "50" else "20") + shown
    return datetime.strptime(shown, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _item(der: bytes) -> tuple[int, bytes, bytes]:
    """Return an item's tag, its content, and the rest."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start], "big")
    return tag, der[start : start + length], der[start + length :]
