"""Context of a request: everything that its handler may call, and its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from aiohttp import web

from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.pack_watch import PackWatch
from gateway.fleet.fleet import Fleet
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


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that handlers may call. Until the gateway has `started`, it answers monitoring alone."""

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
    # Whether what a tenant's prompts open is judged: then it may bring no file that names other files.
    is_judged: Callable[[str], bool]
    packs: PackWatch


CONTEXT = web.AppKey("parts", Context)


class UnknownTenant(Exception):
    """An admin asked for a tenant that nobody knows: the text is its name."""


def context_of(request: web.Request) -> Context:
    """The parts of the gateway that serves a request."""
    return request.app[CONTEXT]


def caller(request: web.Request) -> Identity:
    """Who calls: the gate put it there."""
    identity: Identity = request[IDENTITY]
    return identity


def policy(request: web.Request) -> Policy:
    """What holds for the caller's tenant, whatever its role; for a caller that needs no key, what holds for most."""
    identity: Identity | None = request.get(IDENTITY)
    policies = context_of(request).policies
    return policies.default if identity is None else policies.of(identity.tenant)


def readable(request: web.Request) -> frozenset[str] | None:
    """The backends that what the caller reads may come from; None for all. An admin sees everything."""
    return None if caller(request).is_admin else policy(request).allowed


def whose(request: web.Request) -> Identity:
    """As whom a request reads, or acts on what it names: the caller; an admin who says ``?tenant=``, as that tenant.

    Two tenants may have the same prompt_id, and files of the same name: so an admin says whose.

    Raises:
        UnknownTenant: the tenant has no key, no setting, no job, no file and no history entry, so it is a typo.
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
    )


def tells_whose(request: web.Request) -> bool:
    """Return True if what is shown says whose it is and where it ran: to an admin, if the gateway has keys."""
    return not context_of(request).keyring.is_open and caller(request).is_admin
