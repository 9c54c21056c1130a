"""Where clients connect, from which pages they may, and what one request or connection may take."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import Field, field_validator

from gateway.settings.base import Bytes, Count, Model, Network, Seconds
from gateway.settings.tls import ServerTlsSettings

_HOST = re.compile(r"^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")


class ServerSettings(Model):
    """Where clients connect, and what one request or connection may take.

    `body_rate` is bytes a second that a body must bring, over `body_timeout` seconds.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8288
    tls: ServerTlsSettings = ServerTlsSettings()
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    max_bodies_bytes: Bytes = 256 * 1024**2
    max_body: Bytes = 100 * 1024 * 1024
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    body_rate: Annotated[int, Field(ge=1)] = 500
    send_timeout: Seconds = 60.0
    keepalive_timeout: Seconds = 75.0
    max_connections: Count = 4096
    max_connections_per_address: Count = 1024
    drain_timeout: Seconds = 20.0

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not (_HOST.match(host) or _is_address(host)):
                raise ValueError(f"{host!r} must be a host name, *.a.domain or an address, without scheme and port")
        return tuple(host.lower() for host in hosts)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


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
    """Limits of clients' WebSockets.

    `max_buffer` is for one, `tenant_buffer` for all of a tenant's, `total_buffer` for all. Large results wait on disk:
    `tenant_spool` bytes of a tenant's, `total_spool` of all. A socket may send
    `receive_burst` bytes at once and `receive_rate` a second, all of a tenant's some times as much (`intake.py`).
    """

    max_buffer: Bytes = 16 * 1024 * 1024
    tenant_buffer: Bytes = 64 * 1024 * 1024
    total_buffer: Bytes = 256 * 1024 * 1024
    tenant_spool: Bytes = 1024**3
    total_spool: Bytes = 8 * 1024**3
    stalled_after: Seconds = 30.0
    max_message: Annotated[int, Field(ge=1024, le=1024 * 1024)] = 16 * 1024
    receive_rate: Annotated[int, Field(ge=1024)] = 8 * 1024
    receive_burst: Annotated[int, Field(ge=4096)] = 64 * 1024
