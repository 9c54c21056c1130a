"""Lines of the audit log about what a request did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from aiohttp import web

from gateway.telemetry.audit import NOBODY, Action, Who
from gateway.tenants.keys import Identity
from gateway.web.guard.context import caller, context_of
from gateway.web.http.client_address import client_address
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.request_keys import IDENTITY
from gateway.web.http.request_log import name_jobs

_AUDITED = "audited"


def note(request: web.Request, action: Action, what: str, outcome: str = "ok", **more: str | int) -> None:
    """Write a line about the caller's action. The gate then writes none of its own."""
    request[_AUDITED] = True
    identity = request.get(IDENTITY)
    who = who_of(identity) if identity is not None else NOBODY
    more["request_id"] = request_id_of(request)
    context_of(request).audit.note(action, who, client_address(request), what, outcome, **more)


def is_noted(request: web.Request) -> bool:
    """Return True if a handler has written a line about the request."""
    return _AUDITED in request


def who_of(identity: Identity) -> Who:
    """Return a caller in the form of the audit log."""
    return Who(identity.name, identity.tenant, str(identity.role))


@contextmanager
def foreign_noted(request: web.Request, action: Action, named: Iterable[str] = ()) -> Iterator[list[tuple[str, str]]]:
    """Yield a list for (tenant, prompt_id) of each changed job; at the end write a line for each job of another tenant.

    The lines are written after an exception, too, because jobs were changed before it. The request's own log line has
    the ids that the request `named`, and the ids of these jobs.
    """
    touched: list[tuple[str, str]] = []
    name_jobs(request, named)
    try:
        yield touched
    finally:
        own = caller(request).tenant
        name_jobs(request, (prompt_id for _, prompt_id in touched))
        for tenant, prompt_id in touched:
            if tenant != own:
                note(request, action, prompt_id, whose=tenant)
