"""Certificates and keys, for clients and for backends. The files are tried when the settings are read."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from gateway.settings.base import Model
from gateway.settings.units import TIMES

_CERTIFICATE = re.compile(rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
# Maximum size of the part of a file in which these are looked for.
_MAX_PEM = 1024**2


class ServerTlsSettings(Model):
    """TLS for clients. Without a certificate the gateway speaks plain HTTP.

    `redirect_port` answers plain HTTP with a redirect to https; `hsts` is the seconds of Strict-Transport-Security.
    """

    certificate: Path | None = None
    key: Path | None = None
    redirect_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    hsts: Annotated[int, Field(ge=0, le=63_072_000), *TIMES] | None = None

    @field_validator("certificate", "key")
    @classmethod
    def _check_readable(cls, path: Path | None) -> Path | None:
        return None if path is None else readable(path)

    @model_validator(mode="after")
    def _check_pair(self) -> ServerTlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
        if self.certificate is None and (self.redirect_port is not None or self.hsts is not None):
            raise ValueError("redirect_port and hsts need certificate and key")
        if self.certificate is not None and self.key is not None:
            load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.certificate, self.key)
        return self


class BackendTlsSettings(Model):
    """TLS to one backend: its authority (`ca`, else the system's authorities), and the gateway's own certificate."""

    ca: Path | None = None
    verify: bool = True
    certificate: Path | None = None
    key: Path | None = None

    @field_validator("ca", "certificate", "key")
    @classmethod
    def _check_readable(cls, path: Path | None) -> Path | None:
        return None if path is None else readable(path)

    @model_validator(mode="after")
    def _check_files(self) -> BackendTlsSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
        if self.ca is not None and not self.verify:
            raise ValueError("ca is of no use with verify: false")
        self.context()
        return self

    def context(self) -> ssl.SSLContext:
        """Return a TLS context for connections to this backend.

        Raises:
            ValueError: a file can't be used; the text says which.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise ValueError(f"ca: {self.ca} holds no certificate in PEM form") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None and self.key is not None:
            load_chain(context, self.certificate, self.key)
        return context


def _holds(path: Path, what: re.Pattern[bytes]) -> bool:
    """Return True if a file in PEM form holds a certificate, or a key (RFC 7468)."""
    with path.open("rb") as file:
        return what.search(file.read(_MAX_PEM)) is not None


def readable(path: Path) -> Path:
    """Return the path of a file if the file can be read.

    Raises:
        ValueError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    return path


def load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load a certificate (with its intermediate certificates) and its key into a context.

    Raises:
        ValueError: the files can't be used; the text says why.
    """
    is_encrypted = False

    def passphrase() -> str:
        nonlocal is_encrypted
        is_encrypted = True
        return ""

    try:
        context.load_cert_chain(certificate, key, passphrase)
    except ssl.SSLError as error:
        if is_encrypted:
            raise ValueError(f"key: {key} is encrypted; give a key without a passphrase") from error
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"key: {key} is not the key of {certificate}") from error
        if _holds(certificate, _KEY) and not _holds(certificate, _CERTIFICATE) and _holds(key, _CERTIFICATE):
            raise ValueError(f"certificate: {certificate} holds a key, and {key} a certificate: swap them") from error
        raise ValueError(f"{certificate} and {key} are not a certificate and its key in PEM form") from error
    except OSError as error:
        raise ValueError(f"{certificate} or {key} can't be read: {error.strerror}") from error
