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
from gateway.settings.models import STREAMS, LogSettings, Settings, is_loopback
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
from gateway.settings.routing import AffinitySettings, PolicyName, RoutingSettings
from gateway.settings.runs import RunSettings, WorkflowSettings
from gateway.settings.server import CorsSettings, ServerSettings, SessionSettings
from gateway.settings.tenants import AnonymousSettings, LimitSettings, PolicySettings, TenantSettings
from gateway.settings.tls import BackendTlsSettings, ServerTlsSettings
from gateway.settings.webhooks import WebhookEndpointSettings, WebhookSettings

__all__ = [
    "ADMIN_KEYS",
    "ENVIRONMENT_PREFIX",
    "STREAMS",
    "AffinitySettings",
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
    "PolicyName",
    "PolicySettings",
    "ProbeSettings",
    "RetentionSettings",
    "RouteSettings",
    "RoutingSettings",
    "RunSettings",
    "ServerSettings",
    "ServerTlsSettings",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "StoreSettings",
    "TenantSettings",
    "UploadSettings",
    "UserDataSettings",
    "WebhookEndpointSettings",
    "WebhookSettings",
    "WorkflowSettings",
    "admin_keys_of",
    "backends_of",
    "is_loopback",
    "keys_of",
    "load",
]
