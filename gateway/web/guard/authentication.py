"""Authentication: find the grant behind a request's key, or make the response to a request without one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from aiohttp import web

from gateway.telemetry.audit import Audit, Reason
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.times import iso
from gateway.tenants import browser_sessions
from gateway.tenants.browser_sessions import BrowserSessions
from gateway.tenants.credentials import AmbiguousKey, key_in_cookies, key_in_headers, key_in_query
from gateway.tenants.keys import Grant, Keyring, digest_of
from gateway.tenants.lockout import Lockout
from gateway.tenants.networks import network_of
from gateway.web.guard.sign_in_redirect import SIGN_IN, is_navigation, to_sign_in
from gateway.web.http.base_path import link_prefix
from gateway.web.http.client_address import client_address
from gateway.web.http.responses import problem

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="comfyui-gateway"'}
# Seconds in which a further use of a key from the same address is not noted.
USE_SECONDS = 1.0
# A client sends the same key with each request, and hashing is the most expensive part of the look-up. So valid keys
# stay in memory with their digests, as the request that carried them does. No wrong key does.
MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Refused:
    """Refusal of a key: the reason, and the seconds to wait. `status` is 400, 401 or 429."""

    status: int
    type: str
    message: str
    details: str
    wait: float = 0.0

    def response(self) -> web.Response:
        """Return the refusal in ComfyUI's error form."""
        headers = dict(CHALLENGE) if self.status == 401 else {}
        if self.status == 429:
            headers["Retry-After"] = str(math.ceil(self.wait))
        return problem(self.status, self.type, self.message, self.details, headers)


_HOW = "send it as X-API-Key, as Authorization: Bearer, or as ?token="
_MISSING = Refused(401, "unauthorized", "A valid API key is needed", _HOW)
_UNKNOWN = Refused(401, "unauthorized", "A valid API key is needed", f"this one is not known here; {_HOW}")
_SIGNED_OUT = Refused(401, "unauthorized", "This sign-in is over", "sign in again")


class Authentication:
    """Checks of the keys that requests carry. Addresses with wrong keys have to wait."""

    def __init__(
        self, keyring: Keyring, browser_sessions: BrowserSessions, lockout: Lockout, audit: Audit, metrics: Metrics
    ) -> None:
        self._keyring = keyring
        self._browser_sessions = browser_sessions
        self._lockout = lockout
        self._audit = audit
        self._metrics = metrics
        self._digests: dict[str, str] = {}
        metrics.addresses_locked.set_function(lambda: lockout.waiting(time.monotonic()))

    def admit(self, request: web.Request) -> Grant | web.Response:
        """Return the caller's grant, or the response to a request whose key is wrong or missing."""
        found = self.find(request)
        if isinstance(found, Grant):
            return found
        # If a browser's cookie is stale, send the browser to the sign-in page, because it gets a new cookie there.
        return to_sign_in(request) if found.status != 400 and is_navigation(request) else found.response()

    def find(self, request: web.Request) -> Grant | Refused:
        """Return the grant behind a request's key, or behind its address if it carries no key; else the refusal."""
        if self._keyring.is_open:
            return self._keyring.local
        try:
            key = key_of(request)
        except AmbiguousKey as error:
            self._tell(Reason.AMBIGUOUS, client_address(request), None)
            return Refused(400, "ambiguous_key", "Which key is meant can't be told", f"{error}; send one")
        if key is None:
            return self._keyring.by_address(client_address(request)) or _MISSING
        return self.judge(key, request)

    def judge(self, secret: str, request: web.Request) -> Grant | Refused:
        """Return the grant of a secret, of a key or of a browser session; else the refusal."""
        now = time.time()
        if secret.startswith(browser_sessions.PREFIX):
            # Nobody guesses 190 bits, so an unknown session has ended, and is not a guess.
            grant = self._browser_sessions.grant(secret)
            if grant is None or not grant.holds(now):
                return replace(_SIGNED_OUT, details=f"sign in again at {link_prefix(request)}{SIGN_IN}")
            self._use(grant, request, now)
            return grant
        known = self._digests.get(secret)
        digest = known or digest_of(secret)
        grant = self._keyring.grant(digest)
        if self._lockout.latest and (refused := self._locked(grant, digest, client_address(request), now)) is not None:
            return refused
        if grant is None:
            return self._wrong(digest, client_address(request))
        if not grant.holds(now):
            self._tell(Reason.EXPIRED, client_address(request), grant.identity.name)
            return _over(grant)
        if known is None:
            self._remember(secret, digest)
        self._use(grant, request, now)
        return grant

    def _remember(self, secret: str, digest: str) -> None:
        if len(self._digests) >= MAX_REMEMBERED:
            del self._digests[next(iter(self._digests))]
        self._digests[secret] = digest

    def _use(self, grant: Grant, request: web.Request, now: float) -> None:
        key, address = grant.key, client_address(request)
        # If the clock was set back, note the use all the same.
        if key is not None and (key.address != address or not 0 <= now - (key.used_at or 0) <= USE_SECONDS):
            key.use(address, now)

    def _locked(self, grant: Grant | None, digest: str, address: str | None, now: float) -> Refused | None:
        """Return the refusal of a key whose address has to wait; None if it was used from there in the last day."""
        if address is None or time.monotonic() > self._lockout.latest:
            return None
        wait = self._lockout.wait(address, digest, time.monotonic())
        if not wait or (grant is not None and grant.key is not None and grant.key.was_used_from(address, now)):
            return None
        self._tell(Reason.LOCKED_OUT, address, None)
        details = f"no key is taken from this address for {math.ceil(wait)} s; then send the right one"
        return Refused(429, "locked_out", "Too many wrong keys came from this address", details, wait)

    def _wrong(self, digest: str, address: str | None) -> Refused:
        if address is not None:
            self._lockout.fail(address, digest, time.monotonic())
        self._tell(Reason.UNKNOWN, address, None)
        return _UNKNOWN

    def _tell(self, reason: Reason, address: str | None, name: str | None) -> None:
        self._metrics.keys_refused.labels(str(reason)).inc()
        self._audit.refused(reason, address, network_of(address) if address is not None else None, name)


def _over(grant: Grant) -> Refused:
    """Return the refusal of an expired or replaced key. It says what happened, because the caller has the secret."""
    key, when = grant.key, iso(grant.until)
    if key is not None and key.expires != grant.until:
        message = f"This key was replaced, and held until {when}"
    else:
        message = f"This key expired on {when}"
    return Refused(401, "key_expired", message, f"ask for a new secret of {grant.identity.noun}")


def key_of(request: web.Request) -> str | None:
    """Return the key as `presented_key` does. Read query and cookies only if needed, as most clients send a header."""
    key = key_in_headers(request.headers)
    if key is None and request.rel_url.raw_query_string:
        key = key_in_query(request.rel_url.query)
    if key is None and "Cookie" in request.headers:
        key = cookie_key(request)
    return key or None


def cookie_key(request: web.Request) -> str | None:
    """Return the key in the gateway's own cookie; None if there is none."""
    return key_in_cookies(request.headers.get("Cookie", ""), is_first=bool(link_prefix(request)))
