"""Who calls: the identity behind a request's key, or the answer to a request that has none."""

from __future__ import annotations

from aiohttp import web

from gateway.tenants.keys import COOKIE, Identity, Keyring, presented_key
from gateway.web.addresses import client_address
from gateway.web.answers import problem
from gateway.web.sign_in import is_navigation, to_sign_in

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="comfyui-gateway"'}


def identify(request: web.Request, keyring: Keyring) -> Identity | web.Response:
    """Who calls; or the refusal of a request whose key is wrong or missing."""
    key = None if keyring.is_open else _key_of(request)
    identity = keyring.identify(key)
    if identity is None and key is None:
        identity = keyring.identify_by_address(client_address(request))
    if identity is not None:
        return identity
    if is_navigation(request):
        return to_sign_in(request)
    details = "send it as X-API-Key, as Authorization: Bearer, or as ?token="
    return problem(401, "unauthorized", "A valid API key is needed", details, _CHALLENGE)


def _key_of(request: web.Request) -> str | None:
    cookies = request.cookies if COOKIE in request.headers.get("Cookie", "") else {}
    return presented_key(request.headers, request.rel_url.query, cookies)
