"""Settings of what the gateway does by itself against faults of backends: restarts, VRAM, poisonous graphs."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from gateway.settings.addresses import host_and_port
from gateway.settings.base import YEAR, Model, Seconds
from gateway.settings.units import TIMES

# RFC 9110, 5.6.2: the characters of a header's name.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
MAX_ARGUMENTS = 100


class RestartSettings(Model):
    """Restart of a backend: a `command` (a program and its arguments, no shell), or an HTTP call to a `url`.

    It is for the configuration file alone: no flag and no variable sets it, and no API shows it.
    """

    command: tuple[str, ...] = Field(default=(), repr=False)
    url: str = Field(default="", repr=False)
    method: Literal["POST", "PUT", "GET"] = "POST"
    headers: dict[str, str] = Field(default={}, repr=False)
    after: Seconds = 60.0
    timeout: Seconds = 60.0
    backoff: Seconds = 120.0
    max_per_hour: Annotated[int, Field(ge=1, le=60)] = 4

    @model_validator(mode="after")
    def _one_of(self) -> RestartSettings:
        if bool(self.command) == bool(self.url):
            raise ValueError('give either command, such as ["systemctl", "restart", "comfyui@0"], or url')
        if self.command and {"method", "headers"} & self.model_fields_set:
            raise ValueError("method and headers go with url, not with command")
        if self.command and (not self.command[0] or len(self.command) > MAX_ARGUMENTS):
            raise ValueError(f"command begins with a program, and has at most {MAX_ARGUMENTS} parts")
        if any("\0" in part for part in self.command):
            raise ValueError("command must not hold a NUL character")
        return self

    @model_validator(mode="after")
    def _check_call(self) -> RestartSettings:
        if self.url:
            try:
                parts = urlsplit(self.url)
                is_right = parts.scheme in ("http", "https") and bool(host_and_port(self.url))
            except ValueError:
                is_right = False
            if not is_right or not self.url.isascii() or not self.url.isprintable() or " " in self.url:
                raise ValueError("url must be http://HOST… or https://HOST…")
            if "@" in parts.netloc:
                raise ValueError('credentials belong to headers, such as {Authorization: "Bearer ${TOKEN}"}')
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise ValueError("headers must have names and values that can be sent")
        return self


class VramGuardSettings(Model):
    """VRAM guard: a backend whose VRAM stays nearly full gets no work until it was freed. `above` is the used share."""

    enabled: bool = False
    above: Annotated[float, Field(ge=0.1, le=1)] = 0.95
    after: Seconds = 60.0
    free_every: Seconds = 600.0


class PoisonSettings(Model):
    """Memory of graphs that left a backend's GPU unusable. `remember_seconds`: 0 remembers none."""

    remember_seconds: Annotated[float, Field(ge=0, le=YEAR), *TIMES] = 86_400.0
