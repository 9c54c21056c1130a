"""The configuration: typed models, and their sources."""

from gateway.settings.auth import AuthSettings, KeySettings, LockoutSettings
from gateway.settings.backends import BackendAuthSettings, BackendSettings, EjectionSettings, ProbeSettings
from gateway.settings.jobs import (
    CatalogueSettings,
    DispatchSettings,
    HistorySettings,
    RetentionSettings,
    StoreSettings,
    UploadSettings,
)
from gateway.settings.models import LogSettings, Settings, is_loopback
from gateway.settings.reading import (
    ADMIN_KEYS,
    ENVIRONMENT_PREFIX,
    SettingsError,
    admin_keys_of,
    backends_of,
    keys_of,
    load,
)
from gateway.settings.routes import RouteSettings, UserDataSettings
from gateway.settings.server import CorsSettings, ServerSettings, SessionSettings
from gateway.settings.tenants import AnonymousSettings, LimitSettings, PolicySettings, TenantSettings
from gateway.settings.tls import BackendTlsSettings, ServerTlsSettings

__all__ = [
    "ADMIN_KEYS",
    "ENVIRONMENT_PREFIX",
    "AnonymousSettings",
    "AuthSettings",
    "BackendAuthSettings",
    "BackendSettings",
    "BackendTlsSettings",
    "CatalogueSettings",
    "CorsSettings",
    "DispatchSettings",
    "EjectionSettings",
    "HistorySettings",
    "KeySettings",
    "LimitSettings",
    "LockoutSettings",
    "LogSettings",
    "PolicySettings",
    "ProbeSettings",
    "RetentionSettings",
    "RouteSettings",
    "ServerSettings",
    "ServerTlsSettings",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "StoreSettings",
    "TenantSettings",
    "UploadSettings",
    "UserDataSettings",
    "admin_keys_of",
    "backends_of",
    "is_loopback",
    "keys_of",
    "load",
]
