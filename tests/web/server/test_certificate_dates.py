"""The end of a certificate's validity."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trustme
from cryptography.x509 import load_pem_x509_certificate

from gateway.web.server.certificate_dates import expiry_of


@pytest.mark.parametrize("year", [2031, 2049, 2050, 2199])
def test_the_end_is_read_of_both_forms_of_a_time(year: int) -> None:
    end = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    leaf = trustme.CA(key_type=trustme.KeyType.RSA if year == 2031 else trustme.KeyType.ECDSA).issue_cert(
        "gpu.example", not_after=end
    )
    pems = [pem.bytes().decode() for pem in leaf.cert_chain_pems]
    assert load_pem_x509_certificate(pems[0].encode()).not_valid_after_utc == end
    assert expiry_of("".join(["Bag Attributes\n", *pems])) == end.timestamp()


@pytest.mark.parametrize("pem", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"])
def test_what_is_none_has_no_end(pem: str) -> None:
    assert expiry_of(pem) is None
