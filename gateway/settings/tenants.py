"""Settings of tenants: policies, limits, and the networks of anonymous callers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from gateway.settings.base import Bytes, Count, Label, Model, Name, Network, Period, checked_condition
from gateway.settings.routing import PolicyName


class AnonymousSettings(Model):
    """Callers without a key. Callers from `networks` (CIDR) are one tenant of their own, all others are refused."""

    networks: tuple[Network, ...] = ()
    tenant: Name = "anonymous"


# A condition on a backend: a label, or an amount of VRAM in GB.
Condition = Annotated[str, AfterValidator(checked_condition)]
# A glob pattern: ``*``, ``?``, ``[abc]``.
Pattern = Annotated[str, Field(min_length=1, max_length=256)]


class DenySettings(Model):
    """Glob patterns (``*``, ``?``, ``[abc]``) of refused names."""

    deny: tuple[Pattern, ...] = ()


class NodeSettings(Model):
    """Glob patterns of node classes: `deny` matches a class's name, `trust` a class's name or its pack's name."""

    deny: tuple[Pattern, ...] = ()
    trust: tuple[Pattern, ...] = ()


class LimitSettings(Model):
    """Limits of a tenant, of all its keys together. None: no limit."""

    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    requests_burst: Count | None = None
    prompts_per_minute: Count | None = None
    jobs_waiting: Count | None = None
    jobs_running: Count | None = None
    body_bytes: Bytes | None = None
    # Limited by default, because a body is in memory until it has been read to its end.
    bodies_bytes: Bytes | None = 64 * 1024**2
    # Limited by default, because prompts that wait are in memory.
    open_bytes: Bytes | None = 256 * 1024**2
    upload_bytes: Bytes | None = None
    sockets: Count | None = 1000
    # Limited by default, because prompts without a limit could find out which files exist.
    bad_names_per_minute: Count | None = 100
    bad_names_per_prompt: Count | None = 20


class PolicySettings(Model):
    """Policy of a tenant: the backends, node classes and models that it may use, its share and its limits.

    `routing` is its routing policy; None for that of `routing.policy`. `require` are the conditions that it puts to the
    backends of its jobs.
    """

    labels: tuple[Label, ...] = ()
    require: tuple[Condition, ...] = ()
    deadline: Period | None = None
    routing: PolicyName | None = None
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    max_priority: Annotated[int, Field(ge=0, le=9)] = 0
    nodes: NodeSettings = NodeSettings()
    models: DenySettings = DenySettings()
    limits: LimitSettings = LimitSettings()

    def but(self, other: PolicySettings) -> PolicySettings:
        """Return this policy with the settings that `other` gives. A list in `other` replaces the whole list."""
        return PolicySettings.model_validate(_over(self, other))


def _over(below: Model, above: Model) -> dict[str, Any]:
    merged = {name: getattr(below, name) for name in type(below).model_fields}
    for name in above.model_fields_set:
        value, under = getattr(above, name), merged[name]
        merged[name] = _over(under, value) if isinstance(value, Model) and isinstance(under, Model) else value
    return merged


class TenantSettings(Model):
    """Anonymous callers, the default policy of tenants, and the differences for named tenants."""

    anonymous: AnonymousSettings = AnonymousSettings()
    default: PolicySettings = PolicySettings()
    named: Mapping[Name, PolicySettings] = {}

    def policies(self) -> dict[str, PolicySettings]:
        """Return the policy of each named tenant."""
        return {tenant: self.default.but(policy) for tenant, policy in self.named.items()}
