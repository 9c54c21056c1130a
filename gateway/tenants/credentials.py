"""Credentials: the ways in which requests carry a key."""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Sequence

from multidict import MultiMapping

COOKIE = "comfyui_gateway_key"
# The search is as fast as it is because the expression begins with the name.
_OWN_COOKIE = re.compile(COOKIE + r"[ \t]*=([^;]*)")
_BETWEEN = ("", ";", " ", "\t")
QUERY_PARAMETER = "token"


class AmbiguousKey(Exception):
    """Several different keys in one header, query or cookie. A proxy may read another one; the text names it."""


def presented_key(headers: MultiMapping[str], query: MultiMapping[str], cookies: str) -> str | None:
    """The key that a request carries: X-API-Key, Bearer, Basic (the password), ``?token=`` or the cookie.

    The first of these that is there and not empty counts, and no other is tried when it is wrong: what a page adds to
    a visitor's request never goes before what the visitor's own program says, and a wrong key is a wrong key.

    Raises:
        AmbiguousKey: a header or ``token`` is there more than once, with different keys.
    """
    return key_in_headers(headers) or key_in_query(query) or key_in_cookies(cookies)


def key_in_headers(headers: MultiMapping[str]) -> str | None:
    """That of X-API-Key, else of Authorization.

    Raises:
        AmbiguousKey: as `presented_key`.
    """
    sent = headers.getall("X-API-Key", ())
    if sent and (key := _only(sent, "X-API-Key")):
        return key
    sent = headers.getall("Authorization", ())
    if not sent:
        return None
    scheme, _, credentials = _only(sent, "Authorization").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip() or None
    return _basic_password(credentials.strip()) if scheme.lower() == "basic" else None


def key_in_query(query: MultiMapping[str]) -> str | None:
    """That of ``?token=``.

    Raises:
        AmbiguousKey: as `presented_key`.
    """
    sent = query.getall(QUERY_PARAMETER, ())
    return (_only(sent, QUERY_PARAMETER) or None) if sent else None


def key_in_cookies(header: str) -> str | None:
    """Return what the gateway's own cookie in a Cookie header holds, the last one if there are several.

    No other cookie is parsed, because a stranger's long header of many would take milliseconds.
    """
    own = (match for match in _OWN_COOKIE.finditer(header) if header[match.start() - 1 : match.start()] in _BETWEEN)
    found = next(iter(deque(own, maxlen=1)), None)
    return found[1].strip().strip('"') or None if found is not None else None


def _only(found: Sequence[str], name: str) -> str:
    if len(found) > 1 and len(set(found)) > 1:
        raise AmbiguousKey(f"{name} is there {len(found)} times, with different values")
    return found[0].strip()


def _basic_password(credentials: str) -> str | None:
    """The password of Basic credentials (RFC 7617); a client that has but one field may put the key in as user.

    None for what is not base64, not even ASCII, or not UTF-8 inside.
    """
    try:
        user, _, password = base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")
    except ValueError:
        return None
    return password or user or None
