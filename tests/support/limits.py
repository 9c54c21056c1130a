"""Limits of tenants."""

from __future__ import annotations

from typing import Any

from gateway.settings import TenantSettings
from gateway.tenants.limits import Limits
from gateway.tenants.policy import Policies


def limits(default: dict[str, Any], **named: dict[str, Any]) -> Limits:
    """Limits as the configuration gives them."""
    policies = {name: {"limits": own} for name, own in named.items()}
    return Limits(Policies(TenantSettings.model_validate({"default": {"limits": default}, "named": policies}), []))
