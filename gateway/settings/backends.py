"""Settings of backends: addresses, credentials, probes, and outlier ejection."""

from __future__ import annotations

import base64
import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from gateway.settings.addresses import host_and_port
from gateway.settings.base import Count, Label, Model, Name, Seconds
from gateway.settings.healing import RestartSettings
from gateway.settings.tls import BackendTlsSettings

_OTHER_SCHEMES = frozenset({"ftp", "ws", "wss", "tcp", "unix", "HTTP", "HTTPS"})
MAX_PORT = 65_535
_BACKEND_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")


class BackendAuthSettings(Model):
    """Credentials for a backend, or for a proxy before it: `user` and `password` (Basic), or a `bearer` token."""

    user: str = ""
    password: str = Field(default="", repr=False)
    bearer: str = Field(default="", repr=False)

    @model_validator(mode="after")
    def _one_of(self) -> BackendAuthSettings:
        if bool(self.user) == bool(self.bearer) or (self.password and not self.user):
            raise ValueError("give either user and password, or bearer")
        if self.user and "password" not in self.model_fields_set:
            raise ValueError('user goes with a password, such as password: "${PASSWORD}"; if it is empty, password: ""')
        if ":" in self.user:
            raise ValueError("the user must not hold ':' (RFC 7617)")
        if not (self.bearer.isascii() and self.bearer.isprintable()):
            raise ValueError("the bearer token holds characters that can't be sent in a header")
        return self

    @property
    def header(self) -> str:
        """Return the value of Authorization (RFC 7617, RFC 6750)."""
        if self.bearer:
            return f"Bearer {self.bearer}"
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class BackendSettings(Model):
    """One ComfyUI process. If it names `tenants`, it is dedicated to these, and serves no other tenant."""

    url: str
    name: str = ""
    primary: bool = False
    max_queue: Count | None = None
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    auth: BackendAuthSettings | None = None
    tls: BackendTlsSettings | None = None
    labels: tuple[Label, ...] = ()
    tenants: tuple[Name, ...] = ()
    restart: RestartSettings | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        problem = _url_problem(url.strip())
        if problem:
            raise ValueError(f"must be http://HOST:PORT or https://HOST:PORT, such as http://127.0.0.1:8188; {problem}")
        return url.strip().rstrip("/")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name and not _BACKEND_NAME.match(name):
            raise ValueError("must be 1 to 32 letters, digits, '-' or '_'")
        return name

    @model_validator(mode="after")
    def _check_tls(self) -> BackendSettings:
        if self.tls is not None and not self.url.startswith("https:"):
            raise ValueError("tls goes with a url that begins with https:")
        return self

    @model_validator(mode="after")
    def _check_tenants(self) -> BackendSettings:
        if self.primary and self.tenants:
            raise ValueError(
                "a backend that is dedicated to tenants can't be the primary, because the primary answers all tenants; "
                "take away primary or tenants"
            )
        return self


class ProbeSettings(Model):
    """Times of the probes that watch backends."""

    interval: Seconds = 2.0
    timeout: Seconds = 5.0
    lost_after: Seconds = 30.0


class EjectionSettings(Model):
    """Outlier ejection: bounds and times for backends that fail jobs which others can run."""

    after: Count = 3
    first: Seconds = 10.0
    max_time: Seconds = 300.0
    max_ejected: Annotated[float, Field(ge=0, le=1)] = 0.5


def _url_problem(url: str) -> str:
    """Return the problem of a backend's URL; empty if there is none. It repeats no part that may be a password."""
    scheme, colon, rest = url.partition("://")
    if url.startswith(("unix:", "/")):
        return "Unix sockets are not supported"
    if not colon:
        return "the scheme http:// is missing"
    if scheme not in ("http", "https"):
        return f"found the scheme {scheme}://" if scheme in _OTHER_SCHEMES else "found another scheme"
    if "@" in rest:
        return "credentials belong to auth: {user: …, password: …}"
    if "?" in rest or "#" in rest:
        return "a query is not allowed"
    if not re.fullmatch(r"[^/\s]+(/[^\s]*)?", rest):
        return "the host is missing, or there is a space in it"
    host = rest.partition("/")[0]
    if host.count(":") > 1 and not host.startswith("["):
        return "an IPv6 address needs brackets, as in http://[::1]:8188"
    port = re.search(r":(\d{1,9})$", host)
    if port is not None and int(port[1]) > MAX_PORT:
        return f"the port is above {MAX_PORT}"
    try:
        host_and_port(url)
    except ValueError:
        return "the host or the port can't be"
    return ""
