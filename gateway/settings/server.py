"""Settings of the server: addresses, origins, and bounds of requests and connections."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import Field, field_validator

from gateway.settings.base import Bytes, Count, Model, Network, Seconds
from gateway.settings.base_path import checked_base_path
from gateway.settings.tls import ServerTlsSettings
from gateway.settings.units import SIZES

_LISTENING = re.compile(r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$")
_HOST_EXAMPLE = "give an address such as 127.0.0.1 (this machine alone), 0.0.0.0 (all of IPv4) or :: (all of IPv6)"
_HOST = re.compile(r"^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")


class ServerSettings(Model):
    """The address for clients, and the bounds of one request and one connection.

    `body_rate` is the minimum rate of a body in bytes a second, measured over `body_timeout` seconds.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8288
    tls: ServerTlsSettings = ServerTlsSettings()
    base_path: str = ""
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    max_bodies_bytes: Bytes = 256 * 1024**2
    max_body: Bytes = 100 * 1024 * 1024
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    body_rate: Bytes = 500
    send_timeout: Seconds = 60.0
    # As long as ComfyUI (aiohttp.web_protocol.RequestHandler).
    keepalive_timeout: Seconds = 3630.0
    max_connections: Count = 4096
    max_connections_per_address: Count = 1024
    drain_timeout: Seconds = 20.0

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        """Return ``::1`` for ``[::1]``; refuse texts that are no address to listen on."""
        name = host.strip()
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        if name.startswith(("unix:", "/")):
            raise ValueError(f"Unix sockets are not supported; {_HOST_EXAMPLE}")
        if not (_LISTENING.match(name) or _is_address(name)):
            raise ValueError(f"must be an address or a host name, without scheme, port or path; {_HOST_EXAMPLE}")
        return name

    @field_validator("base_path")
    @classmethod
    def _check_base_path(cls, text: str) -> str:
        return checked_base_path(text)

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
    """Browser origins that may call the gateway, beside its own."""

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

    `max_buffer` is for one socket, `tenant_buffer` for all sockets of a tenant, `total_buffer` for all sockets. Large
    results wait on disk: `tenant_spool` bytes of a tenant, `total_spool` of all tenants. A socket may send
    `receive_burst` bytes at once and `receive_rate` a second; all sockets of a tenant some times as much (`intake.py`).
    """

    max_buffer: Bytes = 16 * 1024 * 1024
    tenant_buffer: Bytes = 64 * 1024 * 1024
    total_buffer: Bytes = 256 * 1024 * 1024
    tenant_spool: Bytes = 1024**3
    total_spool: Bytes = 8 * 1024**3
    stalled_after: Seconds = 30.0
    max_message: Annotated[int, Field(ge=1024, le=1024 * 1024), *SIZES] = 16 * 1024
    receive_rate: Annotated[int, Field(ge=1024), *SIZES] = 8 * 1024
    receive_burst: Annotated[int, Field(ge=4096), *SIZES] = 64 * 1024
