"""The gate that each request passes: authentication, permission, limits, and the log line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import aiohttp
from aiohttp import web
from aiohttp.http_writer import HttpVersion11
from aiohttp.typedefs import Handler
from prometheus_client import Counter, Histogram

from gateway.comfy.client import BackendError
from gateway.store.protocol import StoreError
from gateway.telemetry import logs
from gateway.telemetry.audit import Action
from gateway.tenants.keys import Identity, Role
from gateway.tenants.limits import LimitReached, body_too_large
from gateway.tenants.networks import network_of
from gateway.tenants.roles import Access, Roles, is_manager, is_manifest, may, operators_rows
from gateway.web.guard.audit import is_noted, who_of
from gateway.web.guard.context import Context, UnknownTenant
from gateway.web.guard.cross_origin import READS, Origins, is_preflight
from gateway.web.guard.rate_limits import refuse
from gateway.web.http.base_path import shown_path
from gateway.web.http.client_address import client_address
from gateway.web.http.decompression import TAKEN, BadPacking, UnknownCoding
from gateway.web.http.request_body import MAX_BODY_BYTES, REACHED
from gateway.web.http.request_ids import request_id_of
from gateway.web.http.request_keys import GRANT, IDENTITY, STREAMING
from gateway.web.http.request_log import RequestLog, name_jobs
from gateway.web.http.responses import no_answer, problem
from gateway.web.server.connections import SlowBody
from gateway.web.server.parser_feed import MAX_UNREAD, MalformedBody, ParserFeed

_log = logs.get("http")

# Characters of a path in a line of the audit log.
MAX_PATH = 200
# Names of a job's id in the templates of routes.
_JOB_NAMES = ("prompt_id", "job_id")
# Routes below /gateway/ by which users act on their own things.
_USERS_OWN = ("/gateway/api/v1/me/", "/gateway/run", "/gateway/workflows")
# The codings that a client may send instead (RFC 9110, section 12.5.3).
_ACCEPTS = {"Accept-Encoding": TAKEN}


class Gate:
    """Wrapper of each handler. No aiohttp middleware, because one costs every request a second chain of calls."""

    def __init__(
        self, gateway: Context, intakes: Mapping[web.RequestHandler, ParserFeed], http_log: RequestLog
    ) -> None:
        settings = gateway.settings
        self._intakes = intakes
        self._limits = gateway.limits
        self._started = gateway.started
        self._origins = Origins(settings)
        self._keyring = gateway.keyring
        self._authentication = gateway.authentication
        self._audit = gateway.audit
        self._metrics = gateway.metrics
        self._roles = Roles(operators_rows(settings.routes))
        self._keyless = {Access.ANYBODY, *([Access.MONITORING] if settings.auth.metrics == "open" else [])}
        self._http_log = http_log
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def guard(self, handler: Handler, method: str, route: str, *, passes_on: bool = False) -> Handler:
        """Return a handler behind the gate. `route` is the template, never a raw path, because paths hold names.

        The access is looked up once. For a handler that `passes_on` requests, it is looked up by each request's path.

        Raises:
            LookupError: the table of roles has no row for the route.
        """
        access = None if passes_on else self._roles.of_route(method, route)
        acts = access is Access.ADMINS and method not in READS
        reads_body = method not in READS and (method != "DELETE" or passes_on)
        has_more = reads_body or route.endswith("/ws")
        id_name = next((name for name in _JOB_NAMES if f"{{{name}}}" in route), None)
        is_limited = (self._limits.counts_requests or self._limits.bounds_bodies) and not _is_operations(route)

        async def guarded(request: web.Request) -> web.StreamResponse:
            began = time.perf_counter()
            status, identity = 500, None
            try:
                refusal, identity = self._admit(request, access)
                if refusal is None and (has_more or request.can_read_body):
                    refusal = self._let_in(request, reads_body, is_keyless=identity is None)
                if not self._started.is_set() and identity is not None and identity.role is not Role.METRICS:
                    # Until the backends have told about jobs of an earlier run, wait, because an answer could be wrong.
                    await self._started.wait()
                if is_limited and identity is not None:
                    refusal = self._limit(request, identity.tenant) or refusal
                if refusal is None and reads_body and "Expect" in request.headers:
                    await _answer_expectation(request)
                response = refusal or await _answer(request, handler)
                status = response.status
                return response
            except LimitReached as reached:
                response = self._refuse(reached)
                status = response.status
                return response
            except web.HTTPException as error:
                status = error.status
                raise
            except asyncio.CancelledError:
                # The connection was cut, most likely at the end of `drain_timeout`: nobody gets an answer.
                status = 499
                raise
            finally:
                seconds = time.perf_counter() - began
                self._count(request.method, route, status, seconds)
                if self._http_log.is_on:
                    if id_name is not None:
                        name_jobs(request, [request.match_info[id_name]])
                    self._http_log.write(request, status, seconds, route=route, identity=identity)
                if identity is not None and identity.is_admin and (acts or (passes_on and self._acts(request))):
                    self._note(request, identity, status)

        return guarded

    def _admit(self, request: web.Request, access: Access | None) -> tuple[web.Response | None, Identity | None]:
        """Return the refusal of a request, if it is refused, and its caller, if the caller is known."""
        if is_preflight(request):
            return None, None
        if access is None:
            access = self._roles.of_path(request.method, request.path)
            if request.method in ("GET", "HEAD") and is_manifest(request.path) and not request.query_string:
                access = Access.ANYBODY
        foreign = self._origins.refusal(request, access, is_open=self._keyring.is_open)
        if foreign is not None:
            return foreign, None
        if access in self._keyless:
            return None, None
        grant = self._authentication.admit(request)
        if isinstance(grant, web.Response):
            return grant, None
        identity = grant.identity
        if not may(identity, access):
            self._note_forbidden(request, identity)
            return _forbidden(identity, access), identity
        request[IDENTITY], request[GRANT] = identity, grant
        return None, identity

    def _let_in(self, request: web.Request, reads_body: bool, *, is_keyless: bool) -> web.Response | None:
        """Let the parser read on behind an admitted head; refuse an unread body that is long or of unknown length."""
        if request.can_read_body and (not reads_body or is_keyless):
            size = request.content_length
            if size is None:
                return problem(411, "length_required", "The body needs a Content-Length", "it came in chunks")
            if size > MAX_UNREAD:
                details = f"{size} bytes, of at most {MAX_UNREAD} where no key is needed, or nothing reads them"
                return problem(413, "body_too_large", "The request body is too large", details)
        intake = self._intakes.get(request.protocol)
        if intake is not None:
            intake.open()
        return None

    def _acts(self, request: web.Request) -> bool:
        """Return True if a request that is passed on acts, and is for admins alone."""
        if self._roles.of_path(request.method, request.path) is not Access.ADMINS:
            return False
        return request.method not in READS or is_manager(request.path)

    def _note(self, request: web.Request, identity: Identity, status: int) -> None:
        if not is_noted(request):
            address = client_address(request)
            who, request_id = who_of(identity), request_id_of(request)
            self._audit.note(Action.ADMIN_WRITE, who, address, _asked(request), str(status), request_id=request_id)

    def _note_forbidden(self, request: web.Request, identity: Identity) -> None:
        address = client_address(request)
        place = network_of(address) if address is not None else None
        self._audit.forbidden(who_of(identity), address, place, _asked(request))

    def _limit(self, request: web.Request, tenant: str) -> web.Response | None:
        """Return the refusal of a request past its tenant's limits. This comes before any of its body is read."""
        reached = self._limits.request(tenant, time.monotonic()) if self._limits.counts_requests else None
        if reached is None and self._limits.bounds_bodies and request.can_read_body:
            maximum, size = self._limits.of(tenant).body_bytes, request.content_length or 0
            if maximum is not None:
                request[MAX_BODY_BYTES] = maximum
                reached = body_too_large(maximum, size) if size > maximum else None
        return None if reached is None else self._refuse(reached)

    def _refuse(self, reached: LimitReached) -> web.Response:
        self._metrics.limited.labels(reached.limit).inc()
        return refuse(reached)

    def _count(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        counted = self._counters.get(key)
        if counted is None:
            # Not before the first request: a histogram that counts nothing has as many series as another.
            counter = self._metrics.requests.labels(method, route, str(status))
            counted = self._counters[key] = counter, self._metrics.request_seconds.labels(route)
        counted[0].inc()
        counted[1].observe(seconds)


async def _answer_expectation(request: web.Request) -> None:
    """Send 100 Continue to a client that waits for it (RFC 9110, section 10.1.1). The request must be admitted already.

    Raises:
        HTTPExpectationFailed: the client expects something else.
    """
    if request.version < HttpVersion11 or not request.can_read_body:
        return
    if request.headers["Expect"].lower() != "100-continue":
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # The answer itself has not begun.
    request.writer.output_size = 0


def _asked(request: web.Request) -> str:
    """Return a request in the form of the audit log: without its query, which may hold a key."""
    return f"{request.method} {request.path[:MAX_PATH]}"


def _forbidden(identity: Identity, access: Access) -> web.Response:
    what = "another role" if identity.role is Role.METRICS else "an admin's key"
    if access is Access.MONITORING:
        what = "a key for metrics, or an admin's"
    if access is Access.TEAM:
        what = f"{what}, or tenants that are not isolated: it shows what everybody made"
    details = f"{identity.noun} has the role {identity.role}"
    return problem(403, "forbidden", f"This route needs {what}", details)


def _is_operations(route: str) -> bool:
    """Return True if a route is for operating the gateway. No limit holds there, so that an admin can always act."""
    is_users = route.startswith(_USERS_OWN)
    return (route.startswith("/gateway/") and not is_users) or route in ("/metrics", "/healthz", "/readyz")


def _cut(request: web.Request, error: Exception) -> web.Response:
    """Cut the connection of an answer that failed in its middle.

    The client would take further bytes for the rest of this answer, or for the next one.
    """
    about = {"request_id": request_id_of(request), "path": request.path}
    if isinstance(error, BackendError):
        _log.warning("answer_cut", **about, error=str(error))
    else:
        _log.error("answer_cut", **about, error=repr(error), exc_info=error)
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)


async def _answer_or_cut(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (ConnectionResetError, aiohttp.ClientConnectionResetError):
        raise
    except Exception as error:
        if request.get(STREAMING):
            return _cut(request, error)
        raise


def _malformed(error: MalformedBody) -> web.Response:
    return problem(400, "malformed_request", "The request is not taken", str(error), {"Connection": "close"})


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Call the handler, and turn its exceptions into answers. The type of the exception decides the status."""
    try:
        return await _answer_or_cut(request, handler)
    except web.HTTPRequestEntityTooLarge as error:
        return problem(413, "body_too_large", "The request body is too large", str(error.text))
    except UnknownTenant as error:
        keys = shown_path(request, "/gateway/keys")
        details = f"it has no key, no job, no file and no history; GET {keys} tells the tenants that have keys"
        return problem(404, "no_such_tenant", f"There is no tenant '{str(error)[:MAX_PATH]}'", details)
    except UnknownCoding as error:
        return problem(415, "unknown_coding", "The body is compressed in a way that is not taken", str(error), _ACCEPTS)
    except BadPacking as error:
        return problem(400, "invalid_body", "The body can't be unpacked", str(error))
    except StoreError as error:
        return problem(503, "journal_unavailable", "Nothing can be accepted now", str(error), {"Retry-After": "5"})
    except SlowBody as error:
        return problem(408, "body_too_slow", "The request body comes too slowly", str(error), {"Connection": "close"})
    except MalformedBody as error:
        return _malformed(error)
    except BackendError as error:
        if (reached := request.get(REACHED)) is not None:
            # If the limit was reached while the body was passed on, it looks like a backend's failure: raise it here.
            raise reached from None
        if isinstance(request.content.exception(), SlowBody):
            details = str(request.content.exception())
            return problem(408, "body_too_slow", "The request body comes too slowly", details, {"Connection": "close"})
        if isinstance(fault := request.content.exception(), MalformedBody):
            return _malformed(fault)
        if request.transport is None:
            raise web.HTTPBadGateway from error
        _log.warning("backend_unavailable", request_id=request_id_of(request), path=request.path, error=str(error))
        return no_answer()
    except (ConnectionResetError, aiohttp.ClientConnectionResetError):
        # The client went away; nobody reads this.
        return web.Response(status=499)
