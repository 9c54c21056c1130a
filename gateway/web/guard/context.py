"""Context of a request: all that its handler may call, and its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from aiohttp import web

from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.pack_watch import PackWatch
from gateway.fleet.fleet import Fleet
from gateway.fleet.restarts import Restarts
from gateway.jobs.engine import Engine
from gateway.sessions.hub import Hub
from gateway.settings import Settings
from gateway.store.protocol import Store
from gateway.store.userdata import UserData
from gateway.telemetry.audit import Audit
from gateway.telemetry.metrics import Metrics
from gateway.tenants.browser_sessions import BrowserSessions
from gateway.tenants.keys import Identity, Keyring, Role
from gateway.tenants.limits import Limits
from gateway.tenants.policy import Policies, Policy
from gateway.tenants.stored_keys import StoredKeys
from gateway.web.guard.authentication import Authentication
from gateway.web.http.request_keys import IDENTITY
from gateway.webhooks.service import Webhooks
from gateway.workflows.service import Workflows


@dataclass(frozen=True, slots=True)
class Context:
    """All parts that handlers may call. Until the gateway has `started`, it answers monitoring alone."""

    settings: Settings
    keyring: Keyring
    keys: StoredKeys
    browser_sessions: BrowserSessions
    authentication: Authentication
    audit: Audit
    engine: Engine
    fleet: Fleet
    catalogue: Catalogue
    hub: Hub
    metrics: Metrics
    is_ready: Callable[[], bool]
    started: asyncio.Event
    store: Store
    userdata: UserData
    policies: Policies
    limits: Limits
    # True if the gateway judges a tenant's prompts. Such a tenant may upload no file that names other files.
    is_judged: Callable[[str], bool]
    packs: PackWatch
    restarts: Restarts
    webhooks: Webhooks
    workflows: Workflows


CONTEXT = web.AppKey("parts", Context)


class UnknownTenant(Exception):
    """An admin named a tenant that the gateway does not know. The text is its name."""


def context_of(request: web.Request) -> Context:
    """Return the parts of the gateway that serves a request."""
    return request.app[CONTEXT]


def caller(request: web.Request) -> Identity:
    """Return the caller of a request. The gate has set it."""
    identity: Identity = request[IDENTITY]
    return identity


def policy(request: web.Request) -> Policy:
    """Return the policy of the caller's tenant, for any role; the default policy if the route needs no key."""
    identity: Identity | None = request.get(IDENTITY)
    policies = context_of(request).policies
    return policies.default if identity is None else policies.of(identity.tenant)


def readable(request: web.Request) -> frozenset[str] | None:
    """Return the backends from which the caller may read; None for all. An admin may read from all."""
    return None if caller(request).is_admin else policy(request).allowed


def whose(request: web.Request) -> Identity:
    """Return the identity for a request's look-ups and actions: the caller, or the tenant that an admin names.

    Two tenants may have the same prompt_id, and files of the same name, so an admin names one with ``?tenant=``.

    Raises:
        UnknownTenant: the tenant has no key, setting, job, file, history entry, webhook and workflow, so it is a typo.
    """
    identity = caller(request)
    if not identity.is_admin or "tenant=" not in request.rel_url.raw_query_string:
        return identity
    tenant = request.rel_url.query.get("tenant")
    if not tenant:
        return identity
    if tenant != identity.tenant and not _is_known(context_of(request), tenant):
        raise UnknownTenant(tenant)
    return replace(identity, tenant=tenant, role=Role.USER, isolated=True)


def _is_known(gateway: Context, tenant: str) -> bool:
    engine = gateway.engine
    return (
        gateway.keyring.has_tenant(tenant)
        or gateway.policies.names(tenant)
        or engine.ledger.remaining(tenant) > 0
        or engine.history.has(tenant)
        or engine.files.has(tenant)
        or bool(gateway.webhooks.endpoints(tenant))
        or gateway.workflows.has(tenant)
    )


def tells_whose(request: web.Request) -> bool:
    """Return True if responses name the tenant and the backend of a job: to an admin, if the gateway has keys."""
    return not context_of(request).keyring.is_open and caller(request).is_admin
