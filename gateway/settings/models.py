"""The whole configuration, as typed models with their defaults."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import PrivateAttr, field_validator, model_validator

from gateway.settings.addresses import host_and_port, is_own_address
from gateway.settings.auth import AuthSettings
from gateway.settings.backends import BackendSettings, EjectionSettings, ProbeSettings
from gateway.settings.base import Model, Seconds, is_label
from gateway.settings.healing import PoisonSettings, VramGuardSettings
from gateway.settings.jobs import (
    CatalogueSettings,
    DispatchSettings,
    HistorySettings,
    OutputSettings,
    StoreSettings,
    UploadSettings,
)
from gateway.settings.routes import RouteSettings, UserDataSettings
from gateway.settings.routing import RoutingSettings
from gateway.settings.runs import RunSettings, WorkflowSettings
from gateway.settings.server import CorsSettings, ServerSettings, SessionSettings
from gateway.settings.storage import StorageSettings
from gateway.settings.tenants import TenantSettings
from gateway.settings.v2 import V2Settings
from gateway.settings.webhooks import WebhookSettings

# Values of log.file that are no paths.
STREAMS = ("stderr", "stdout")


class LogSettings(Model):
    """Level, form, place and kinds of log lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    file: str = "stderr"
    requests: bool = True
    audit: bool = True
    fleet_status: Seconds | None = 60.0

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str) -> str:
        """Refuse a path that can be no file's, because the log would be missing when it is needed."""
        if file in STREAMS:
            return file
        if not file.strip():
            raise ValueError("is empty; give stderr, stdout or the path of a file")
        try:
            is_folder, has_folder = Path(file).is_dir(), Path(file).absolute().parent.is_dir()
        except OSError as error:
            raise ValueError(f"{file} can't be opened: {error.strerror}; give another path") from error
        if is_folder:
            raise ValueError(
                f"{file} is a folder; give the path of a file in it, such as {file.rstrip('/')}/gateway.log"
            )
        if not has_folder:
            raise ValueError(f"there is no folder {Path(file).absolute().parent}; make it, for the gateway's user")
        return file


class Settings(Model):
    """The whole configuration."""

    server: ServerSettings = ServerSettings()
    data_dir: Path = Path("data")
    backends: tuple[BackendSettings, ...] = ()
    auth: AuthSettings = AuthSettings()
    tenants: TenantSettings = TenantSettings()
    probe: ProbeSettings = ProbeSettings()
    dispatch: DispatchSettings = DispatchSettings()
    routing: RoutingSettings = RoutingSettings()
    ejection: EjectionSettings = EjectionSettings()
    vram_guard: VramGuardSettings = VramGuardSettings()
    poison: PoisonSettings = PoisonSettings()
    history: HistorySettings = HistorySettings()
    sessions: SessionSettings = SessionSettings()
    store: StoreSettings = StoreSettings()
    uploads: UploadSettings = UploadSettings()
    outputs: OutputSettings = OutputSettings()
    userdata: UserDataSettings = UserDataSettings()
    routes: RouteSettings = RouteSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    webhooks: WebhookSettings = WebhookSettings()
    v2: V2Settings = V2Settings()
    run: RunSettings = RunSettings()
    workflows: WorkflowSettings = WorkflowSettings()
    storage: StorageSettings = StorageSettings()
    cors: CorsSettings = CorsSettings()
    log: LogSettings = LogSettings()

    _former_names: tuple[str, ...] = PrivateAttr(())

    @field_validator("data_dir", mode="before")
    @classmethod
    def _check_directory(cls, given: Any) -> Any:
        """Refuse an empty text, which would be the folder that the gateway was started in."""
        if isinstance(given, str) and not given.strip():
            raise ValueError("is empty; give the path of a folder of the gateway's own, such as data")
        return given

    @field_validator("backends")
    @classmethod
    def _name_backends(cls, backends: tuple[BackendSettings, ...]) -> tuple[BackendSettings, ...]:
        """Give nameless backends ``b1``, ``b2``, … by their place, so that names stay put across restarts."""
        named = tuple(
            backend if backend.name else backend.model_copy(update={"name": f"b{place}"})
            for place, backend in enumerate(backends, start=1)
        )
        urls = ["{}:{}".format(*host_and_port(backend.url)) + urlsplit(backend.url).path for backend in named]
        for what, values in (("name", [b.name for b in named]), ("url", urls)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"each backend needs a {what} of its own; given twice: {', '.join(twice)}")
        if sum(backend.primary for backend in named) > 1:
            raise ValueError("at most one backend can be primary")
        return named

    @model_validator(mode="after")
    def _check_loop(self) -> Settings:
        """Refuse the gateway itself as a backend, because a prompt would go round until something gives way."""
        for place, backend in enumerate(self.backends):
            if is_own_address(backend.url, self.server.host, self.server.port):
                raise ValueError(
                    f"backends[{place}].url: {backend.url} is where this gateway itself listens (server.host and "
                    "server.port); give the ComfyUI's address, or the gateway another port"
                )
        return self

    @model_validator(mode="after")
    def _check_auth(self) -> Settings:
        names = [key.name for key in self.auth.keys]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(names) != len(set(names)) else []
        if twice:
            raise ValueError(f"auth.keys: each key needs a name of its own; given twice: {', '.join(twice)}")
        places: dict[str, int] = {}
        for place, key in enumerate(self.auth.keys):
            first = places.setdefault(key.digest, place)
            if first != place:
                entries = f"auth.keys[{first}] ({names[first]}) and auth.keys[{place}] ({key.name})"
                raise ValueError(f"{entries} are the same key; give each a key of its own, or take one of them out")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Settings:
        """Refuse a label that no backend has: it is most likely a slip, and leaves its tenant without backends."""
        there = {label for backend in self.backends for label in backend.labels}
        policies = {"default": self.tenants.default, **{f"named.{n}": p for n, p in self.tenants.named.items()}}
        wrong = [
            f"tenants.{place}.{setting}: no backend has the label '{label}'"
            for place, policy in policies.items()
            for setting, given in (("labels", policy.labels), ("require", tuple(filter(is_label, policy.require))))
            for label in given
            if label not in there
        ]
        if wrong and self.backends:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _check_dedicated(self) -> Settings:
        """Refuse a tenant that its labels keep from its dedicated backend, or that has no backend at all."""
        named = self.tenants.policies()
        wrong = []
        for place, backend in enumerate(self.backends):
            for tenant in backend.tenants:
                labels = named.get(tenant, self.tenants.default).labels
                if labels and not set(labels) & set(backend.labels):
                    wrong.append(
                        f"backends[{place}].tenants: the tenant '{tenant}' may use backends with the labels "
                        f"{', '.join(labels)} only, and this backend has none of these; give it one"
                    )
        for tenant, policy in named.items():
            labels = policy.labels
            labelled = [backend for backend in self.backends if not labels or set(labels) & set(backend.labels)]
            if labelled and not any(tenant in backend.tenants or not backend.tenants for backend in labelled):
                wrong.append(
                    f"tenants.named.{tenant}: every backend that its labels allow is dedicated to other tenants; "
                    f"add '{tenant}' to the tenants of one"
                )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def former_names(self) -> tuple[str, ...]:
        """Return a warning for each setting that was given under a former name."""
        return self._former_names

    def with_former_names(self, warnings: Sequence[str]) -> Settings:
        """Return these settings with the warnings that `former_names` returns."""
        settings = self.model_copy()
        settings._former_names = tuple(warnings)
        return settings

    @property
    def open_to_strangers(self) -> bool:
        """Return True if the gateway would listen beyond loopback with no key, anonymous network or `auth.disabled`."""
        known = self.auth.keys or self.tenants.anonymous.networks
        return not (known or self.auth.disabled or is_loopback(self.server.host))


def is_loopback(host: str) -> bool:
    """Return True if a listening address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
