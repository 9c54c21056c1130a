"""Keys: who may call."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from pydantic import Field, model_validator

from gateway.settings.base import Model


class KeySettings(Model):
    """One API key: its SHA-256 (hex), or the key itself, best taken from the environment as ``${NAME}``."""

    name: str = Field(min_length=1, max_length=64)
    sha256: str = ""
    key: str = Field(default="", repr=False)
    role: Literal["user", "admin", "metrics"] = "user"
    tenant: str = Field(default="", max_length=64)

    @model_validator(mode="after")
    def _one_of(self) -> KeySettings:
        if bool(self.sha256) == bool(self.key):
            raise ValueError("give either sha256 or key, not both and not neither")
        if self.sha256 and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 lowercase hexadecimal digits")
        if self.key and len(self.key) < 8:
            raise ValueError("key must have at least 8 characters")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the key, in lowercase hexadecimal."""
        return self.sha256 or hashlib.sha256(self.key.encode()).hexdigest()


class AuthSettings(Model):
    """Who may call. `disabled` makes every caller the one local user; `metrics` says who reads /metrics."""

    disabled: bool = False
    keys: tuple[KeySettings, ...] = ()
    metrics: Literal["open", "key"] = "open"
    isolation: Literal["isolated", "shared"] = "isolated"
