"""The sign-in page: a browser's user gives a key once; a cookie carries it from then on."""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from importlib import resources
from urllib.parse import quote

from aiohttp import web

from gateway.tenants.keys import COOKIE
from gateway.web.addresses import client_scheme
from gateway.web.parts import parts

PATH = "/gateway/signin"
COOKIE_SECONDS = 30 * 86_400
MAX_FORM = 16 * 1024

_PAGE = (resources.files("gateway.web") / "pages" / "sign_in.html").read_text("utf-8")
_STYLE = re.search(r"<style>(.*?)</style>", _PAGE, re.DOTALL)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE[1].encode()).digest()).decode() if _STYLE else ""
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; img-src data:; style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": the form's own Origin would then be "null", as a foreign page's may be.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_navigation(request: web.Request) -> bool:
    """Whether a person's browser asks for a page, rather than a program for data."""
    return request.method == "GET" and "text/html" in request.headers.get("Accept", "")


def to_sign_in(request: web.Request) -> web.Response:
    """Send a browser to the sign-in page, and back here afterwards."""
    location = PATH if request.path == "/" else f"{PATH}?next={quote(request.path)}"
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})


def _own_path(path: str) -> str:
    """Where to go afterwards: a path of this gateway, never another host (``//host`` and ``/\\host`` are hosts)."""
    return quote(path) if re.match(r"^/(?![/\\])[^\x00-\x1f]*$", path) else "/"


def _page(next_path: str, message: str = "", status: int = 200) -> web.Response:
    shown = f'<p class="wrong" role="alert">{escape(message)}</p>\n' if message else ""
    text = _PAGE.replace("{next}", escape(_own_path(next_path))).replace("{message}", shown)
    return web.Response(text=text, status=status, content_type="text/html", headers=_HEADERS)


async def get_sign_in(request: web.Request) -> web.Response:
    """The page."""
    next_path = request.rel_url.query.get("next", "/")
    if parts(request).keyring.is_open:
        return web.Response(status=303, headers={"Location": _own_path(next_path)})
    return _page(next_path)


async def post_sign_in(request: web.Request) -> web.Response:
    """The key that was entered, into a cookie that no script can read and no foreign page can send along."""
    if (request.content_length or 0) > MAX_FORM:
        return _page("/", "That is too long to be a key.", 413)
    form = await request.post()
    key, next_path = form.get("key"), form.get("next")
    next_path = next_path if isinstance(next_path, str) else "/"
    keyring = parts(request).keyring
    if not isinstance(key, str) or keyring.identify(key.strip()) is None:
        return _page(next_path, "This key is not known here.", 401)
    response = web.Response(status=303, headers={"Location": _own_path(next_path), "Cache-Control": "no-store"})
    response.set_cookie(
        COOKIE,
        key.strip(),
        max_age=COOKIE_SECONDS,
        path="/",
        httponly=True,
        samesite="Lax",
        secure=client_scheme(request) == "https",
    )
    return response


async def post_sign_out(request: web.Request) -> web.Response:
    """Forget the cookie."""
    response = web.Response(status=303, headers={"Location": PATH, "Cache-Control": "no-store"})
    response.del_cookie(COOKIE, path="/", httponly=True, samesite="Lax", secure=client_scheme(request) == "https")
    return response
