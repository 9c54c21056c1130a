"""The ComfyUIs, and how they are watched."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from gateway.settings.base import Count, Model, Seconds

_BACKEND_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")


class BackendSettings(Model):
    """One ComfyUI process."""

    url: str
    name: str = ""
    primary: bool = False
    max_queue: Count | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not re.match(r"^https?://[^/\s?#@]+(/[^?#\s]*)?$", url):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, without a query or credentials")
        return url.rstrip("/")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name and not _BACKEND_NAME.match(name):
            raise ValueError("must be 1 to 32 letters, digits, '-' or '_'")
        return name


class ProbeSettings(Model):
    """How backends are watched."""

    interval: Seconds = 2.0
    timeout: Seconds = 5.0
    lost_after: Seconds = 30.0


class EjectionSettings(Model):
    """When a backend that fails what others can do gets no work for a while."""

    after: Count = 3
    first: Seconds = 10.0
    most: Seconds = 300.0
    max_ejected: Annotated[float, Field(ge=0, le=1)] = 0.5
