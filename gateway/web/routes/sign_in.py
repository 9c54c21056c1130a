"""The sign-in page: a browser's user gives a key once; from then on a cookie carries a secret of that browser's own."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import time
from collections.abc import Mapping
from html import escape
from importlib import resources
from urllib.parse import parse_qsl, quote

from aiohttp import web

from gateway.store.protocol import StoreError
from gateway.telemetry.audit import Action
from gateway.tenants import browser_sessions
from gateway.tenants.credentials import COOKIE, key_in_cookies
from gateway.tenants.keys import Grant
from gateway.web.guard.audit import note
from gateway.web.guard.authentication import CHALLENGE, Refused, cookie_key
from gateway.web.guard.context import context_of
from gateway.web.guard.sign_in_redirect import SIGN_IN
from gateway.web.http.base_path import link_prefix
from gateway.web.http.client_address import client_scheme
from gateway.web.http.request_keys import IDENTITY

MAX_FORM = 8 * 1024
MAX_FIELDS = 10

_PAGE = (resources.files("gateway.web") / "pages" / "sign_in.html").read_text("utf-8")
_STYLE = re.search(r"<style>(.*?)</style>", _PAGE, re.DOTALL)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE[1].encode()).digest()).decode() if _STYLE else ""
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": the form's own Origin would then be "null", as a foreign page's may be.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def _own_path(path: str) -> str:
    """Return the path to go to after the sign-in; ``/`` for another host (``//host`` and ``/\\host`` are hosts)."""
    return quote(path) if re.match(r"^/(?![/\\])[^\x00-\x1f]*$", path) else "/"


def _own_url(request: web.Request, path: str) -> str:
    """Return the same as a URL for the client, under the prefix that it sees."""
    return link_prefix(request) + _own_path(path)


# Shown below the form if the user is signed in already.
_SIGN_OUT = """<form method="post" action="{prefix}/gateway/signout">
<p>You are signed in as {name}.</p>
<button type="submit">Sign out</button>
</form>
"""


def _page(
    request: web.Request,
    next_path: str,
    message: str = "",
    status: int = 200,
    more: Mapping[str, str] | None = None,
    name: str | None = None,
) -> web.Response:
    sign_out = "" if name is None else _SIGN_OUT.replace("{name}", escape(name))
    shown = f'<p class="wrong" role="alert">{escape(message)}</p>\n' if message else ""
    text = (
        _PAGE.replace("{next}", escape(_own_path(next_path)))
        .replace("{message}", shown)
        .replace("{sign_out}", sign_out)
        .replace("{prefix}", link_prefix(request))
    )
    return web.Response(text=text, status=status, content_type="text/html", headers={**_HEADERS, **(more or {})})


async def get_sign_in(request: web.Request) -> web.Response:
    """Answer with the page; if the caller is signed in, with a button to sign out."""
    next_path = request.rel_url.query.get("next", "/")
    if context_of(request).keyring.is_open:
        return web.Response(status=303, headers={"Location": _own_url(request, next_path)})
    grant = context_of(request).browser_sessions.grant(cookie_key(request) or "")
    return _page(request, next_path, name=grant.identity.name if grant is not None else None)


async def post_sign_in(request: web.Request) -> web.Response:
    """Sign in with the entered key, by a cookie that no script can read and no foreign page can send."""
    form = await _form(request)
    if form is None:
        return _page(request, "/", "That is too long to be a key.", 413)
    secret, next_path = form.get("key", "").strip(), form.get("next", "/")
    if context_of(request).keyring.is_open:
        return web.Response(status=303, headers={"Location": _own_url(request, next_path)})
    # Refuse a cookie's secret, because typing it in would extend the session again and again.
    is_key = secret and not secret.startswith(browser_sessions.PREFIX)
    found = context_of(request).authentication.judge(secret, request) if is_key else None
    if not isinstance(found, Grant):
        return _refusal(request, next_path, found)
    request[IDENTITY] = found.identity
    response = web.Response(status=303, headers={"Location": _own_url(request, next_path), "Cache-Control": "no-store"})
    now = time.time()
    response.set_cookie(
        COOKIE,
        await context_of(request).browser_sessions.make(found, now),
        max_age=round(min(found.until - now, context_of(request).settings.auth.sign_in)),
        path=link_prefix(request) or "/",
        httponly=True,
        samesite="Lax",
        secure=client_scheme(request) == "https",
    )
    note(request, Action.SIGN_IN, "browser")
    return response


async def _form(request: web.Request) -> dict[str, str] | None:
    """Return the form's texts; None if the form is larger than any key. The caller has no key yet, so it is not read.

    aiohttp would read it in any charset that it names, and the time of some grows with the square of the text. Its
    parser of the Content-Type takes milliseconds.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded" or "Content-Encoding" in request.headers:
        return {}
    if (request.content_length or 0) > MAX_FORM:
        return None
    try:
        return dict(parse_qsl((await request.read()).decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        # No UTF-8, or more fields than the page has.
        return {}


def _refusal(request: web.Request, next_path: str, refused: Refused | None) -> web.Response:
    if refused is not None and refused.status == 429:
        wait = math.ceil(refused.wait)
        message = f"Too many wrong keys came from your address. Try again in {wait} seconds."
        return _page(request, next_path, message, 429, {"Retry-After": str(wait)})
    if refused is not None and refused.type == "key_expired":
        return _page(request, next_path, f"{refused.message}.", 401, CHALLENGE)
    return _page(request, next_path, "This key is not known here.", 401, CHALLENGE)


async def post_sign_out(request: web.Request) -> web.Response:
    """End the browser session, so that every copy of its cookie is invalid, and delete the browser's cookie."""
    prefix, is_secure = link_prefix(request), client_scheme(request) == "https"
    response = web.Response(status=303, headers={"Location": prefix + SIGN_IN, "Cache-Control": "no-store"})
    response.del_cookie(COOKIE, path=prefix or "/", httponly=True, samesite="Lax", secure=is_secure)
    for secret in _sessions(request):
        grant = context_of(request).browser_sessions.grant(secret)
        if grant is None:
            continue
        request[IDENTITY] = grant.identity
        outcome = "ok"
        try:
            await context_of(request).browser_sessions.end(secret)
        except StoreError as error:
            outcome = str(error)
        context_of(request).hub.close_ended()
        note(request, Action.SIGN_OUT, "browser", outcome)
    return response


def _sessions(request: web.Request) -> list[str]:
    """Return the secrets of the browser's sessions: one under the prefix, and one at the root, from before a prefix.

    If the session at the root went on, the browser would be signed in again.
    """
    cookies = request.headers.get("Cookie", "")
    found = (key_in_cookies(cookies, is_first=True), key_in_cookies(cookies))
    return list(dict.fromkeys(secret for secret in found if secret))
