"""Settings of keys: callers, lifetimes, and the lock-out of addresses that guess keys."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gateway.settings.base import YEAR, Count, Model, Name, Period, Seconds, checked_name
from gateway.settings.units import TIMES, seconds_of

MIN_KEY = 8
# Keys that stand in examples and guides, ours among them, because attackers try these first.
EXAMPLE_KEYS = frozenset(
    """
    change-me-now change-me-please changeme1 changemenow change_me_now changethis replace-me replaceme
    your-key-here your-api-key your_api_key your-secret-key your-admin-key api-key-here key-goes-here
    password password1 passw0rd 12345678 123456789 1234567890
    """.split()
)
_EXAMPLE_DIGESTS = frozenset(hashlib.sha256(key.encode()).hexdigest() for key in EXAMPLE_KEYS)


class KeySettings(Model):
    """One API key: its SHA-256 (hex), or the key itself, best taken from the environment as ``${NAME}``."""

    name: Name
    sha256: str = ""
    key: str = Field(default="", repr=False)
    role: Literal["user", "admin", "metrics"] = "user"
    tenant: str = ""
    expires: datetime | None = None

    @field_validator("tenant")
    @classmethod
    def _check_tenant(cls, tenant: str) -> str:
        return checked_name(tenant) if tenant else tenant

    @field_validator("expires", mode="before")
    @classmethod
    def _whole_day(cls, expires: Any) -> Any:
        """Turn a date into the time at which its day begins, because YAML reads ``2026-12-24`` as a date."""
        if isinstance(expires, str) and seconds_of(expires) != expires:
            raise ValueError(
                "must be a date such as 2036-12-24; 30d is for the command line alone (keys create --expires 30d), "
                "because in a file it would begin anew with each start"
            )
        is_day = isinstance(expires, date) and not isinstance(expires, datetime)
        return datetime.combine(expires, time(), UTC) if is_day else expires

    @field_validator("expires")
    @classmethod
    def _in_utc(cls, expires: datetime | None) -> datetime | None:
        return expires.replace(tzinfo=UTC) if expires is not None and expires.tzinfo is None else expires

    @model_validator(mode="after")
    def _one_of(self) -> KeySettings:
        if bool(self.sha256) == bool(self.key):
            raise ValueError('give either sha256 or key, such as key: "${APP_KEY}", and not both')
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lowercase hexadecimal digits, as printf %s KEY | sha256sum prints them")
        if self.key and len(self.key) < MIN_KEY:
            raise ValueError(f"key must have at least {MIN_KEY} characters; make one with: openssl rand -hex 16")
        if self.digest in _EXAMPLE_DIGESTS:
            raise ValueError("this key stands in examples, so anybody may try it; make one with: openssl rand -hex 16")
        return self

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the key, in lowercase hexadecimal."""
        return self.sha256 or hashlib.sha256(self.key.encode()).hexdigest()


class LockoutSettings(Model):
    """Waits of an address that presents wrong keys: from failure number `after` on, twice as long each time."""

    after: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    first: Seconds = 1.0
    max_time: Seconds = 300.0


class AuthSettings(Model):
    """Keys and their rules. `disabled` makes every caller the one local user; `metrics` opens or closes /metrics."""

    disabled: bool = False
    keys: tuple[KeySettings, ...] = ()
    max_keys: Count = 100_000
    rotation_overlap: Annotated[float, Field(ge=0, le=YEAR), *TIMES] = 86_400.0
    sign_in: Period = 2_592_000.0
    metrics: Literal["open", "key"] = "open"
    isolation: Literal["isolated", "shared"] = "isolated"
    lockout: LockoutSettings = LockoutSettings()
