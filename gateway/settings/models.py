"""Everything that can be configured, as typed models with their defaults."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_BACKEND_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class BackendSettings(_Model):
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


class ServerSettings(_Model):
    """Where clients connect, and what one request may weigh."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8288
    max_body: Bytes = 100 * 1024 * 1024
    drain_timeout: Seconds = 20.0


class KeySettings(_Model):
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


class AuthSettings(_Model):
    """Who may call. `disabled` makes every caller the one local user; `metrics` says who reads /metrics."""

    disabled: bool = False
    keys: tuple[KeySettings, ...] = ()
    metrics: Literal["open", "key"] = "open"
    isolation: Literal["isolated", "shared"] = "isolated"


class AnonymousSettings(_Model):
    """Callers without a key: those from `networks` (CIDR) are one tenant of their own, all others are refused."""

    networks: tuple[str, ...] = ()
    tenant: str = Field(default="anonymous", min_length=1, max_length=64)

    @field_validator("networks")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"{network!r} is not a network such as 10.0.0.0/8: {error}") from error
        return networks


class TenantSettings(_Model):
    """Tenants that no key stands for."""

    anonymous: AnonymousSettings = AnonymousSettings()


class ProbeSettings(_Model):
    """How backends are watched."""

    interval: Seconds = 2.0
    timeout: Seconds = 5.0
    lost_after: Seconds = 30.0


class DispatchSettings(_Model):
    """How prompts are sent."""

    max_queue: Count = 16
    max_waiting: Count = 10_000
    connect_timeout: Seconds = 3.0
    send_timeout: Seconds = 20.0
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    take_over: bool = True
    backoff: Seconds = 0.5
    backoff_most: Seconds = 30.0
    rerun_started: bool = True
    stall_after: Seconds = 300.0
    job_timeout: Seconds | None = None
    on_timeout: Literal["fail", "retry"] = "fail"
    deadline: Seconds | None = None


class EjectionSettings(_Model):
    """When a backend that fails what others can do gets no work for a while."""

    after: Count = 3
    first: Seconds = 10.0
    most: Seconds = 300.0
    max_ejected: Annotated[float, Field(ge=0, le=1)] = 0.5


class HistorySettings(_Model):
    """What is kept of finished jobs."""

    max_items: Count = 10_000
    memory: Bytes = 128 * 1024 * 1024


class SessionSettings(_Model):
    """Limits of one client's WebSocket."""

    max_buffer: Bytes = 16 * 1024 * 1024
    stalled_after: Seconds = 30.0


class RetentionSettings(_Model):
    """What the journal keeps of finished jobs, of all tenants together."""

    max_age: Annotated[float, Field(gt=0)] = 30 * 86_400.0
    max_items: Count = 100_000


class StoreSettings(_Model):
    """The journal."""

    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    retention: RetentionSettings = RetentionSettings()


class UploadSettings(_Model):
    """What clients bring, kept in the data directory and put on the backends."""

    max_size: Bytes = 4 * 1024**3
    quota: Bytes = 20 * 1024**3
    keep: Annotated[float, Field(gt=0)] = 30 * 86_400.0


class CatalogueSettings(_Model):
    """How often /object_info and the model lists of the backends are read again."""

    refresh: Seconds = 300.0
    timeout: Seconds = 60.0


class CorsSettings(_Model):
    """Browser origins, beside the gateway's own, that may call it."""

    origins: tuple[str, ...] = ()

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.match(r"^https?://[^/\s*]+$", origin):
                raise ValueError(f"{origin!r} must be SCHEME://HOST[:PORT]; '*' is not accepted")
        return origins


class LogSettings(_Model):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    requests: bool = True


class Settings(_Model):
    """Everything that can be configured."""

    server: ServerSettings = ServerSettings()
    data_dir: Path = Path("data")
    backends: tuple[BackendSettings, ...] = ()
    auth: AuthSettings = AuthSettings()
    tenants: TenantSettings = TenantSettings()
    probe: ProbeSettings = ProbeSettings()
    dispatch: DispatchSettings = DispatchSettings()
    ejection: EjectionSettings = EjectionSettings()
    history: HistorySettings = HistorySettings()
    sessions: SessionSettings = SessionSettings()
    store: StoreSettings = StoreSettings()
    uploads: UploadSettings = UploadSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    cors: CorsSettings = CorsSettings()
    log: LogSettings = LogSettings()

    @field_validator("backends")
    @classmethod
    def _name_backends(cls, backends: tuple[BackendSettings, ...]) -> tuple[BackendSettings, ...]:
        """Give nameless backends ``b1``, ``b2``, … by their place, so that names stay put across restarts."""
        named = tuple(
            backend if backend.name else backend.model_copy(update={"name": f"b{place}"})
            for place, backend in enumerate(backends, start=1)
        )
        for what, values in (("name", [b.name for b in named]), ("url", [b.url for b in named])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"each backend needs a {what} of its own; given twice: {', '.join(twice)}")
        if sum(backend.primary for backend in named) > 1:
            raise ValueError("at most one backend can be primary")
        return named

    @model_validator(mode="after")
    def _check_auth(self) -> Settings:
        names = [key.name for key in self.auth.keys]
        if len(names) != len(set(names)):
            raise ValueError("auth.keys: each key needs a name of its own")
        digests = [key.digest for key in self.auth.keys]
        if len(digests) != len(set(digests)):
            raise ValueError("auth.keys: the same key is given twice")
        return self

    @property
    def open_to_strangers(self) -> bool:
        """Whether it would listen beyond loopback without a key and without being told that this is meant."""
        known = self.auth.keys or self.tenants.anonymous.networks
        return not (known or self.auth.disabled or is_loopback(self.server.host))


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
