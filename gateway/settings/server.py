"""Where clients connect, from which pages they may, and what one request may weigh."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from gateway.settings.base import Bytes, Model, Seconds


class ServerSettings(Model):
    """Where clients connect, and what one request may weigh."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8288
    max_body: Bytes = 100 * 1024 * 1024
    drain_timeout: Seconds = 20.0


class CorsSettings(Model):
    """Browser origins, beside the gateway's own, that may call it."""

    origins: tuple[str, ...] = ()

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.match(r"^https?://[^/\s*]+$", origin):
                raise ValueError(f"{origin!r} must be SCHEME://HOST[:PORT]; '*' is not accepted")
        return origins


class SessionSettings(Model):
    """Limits of one client's WebSocket."""

    max_buffer: Bytes = 16 * 1024 * 1024
    stalled_after: Seconds = 30.0
