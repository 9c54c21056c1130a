"""Tenants: who stands behind callers, and what is theirs."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator

from gateway.settings.base import Model


class AnonymousSettings(Model):
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


class TenantSettings(Model):
    """Tenants that no key stands for."""

    anonymous: AnonymousSettings = AnonymousSettings()
