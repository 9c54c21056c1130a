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
    """Return the key that a request carries: X-API-Key, Bearer, Basic (the password), ``?token=`` or the cookie.

    The first of these that is not empty counts. If it is wrong, no other is tried. The order matters, because a web
    page can add a key to a visitor's request. That key must not override the one of the visitor's own program.

    Raises:
        AmbiguousKey: a header or ``token`` is there more than once, with different keys.
    """
    return key_in_headers(headers) or key_in_query(query) or key_in_cookies(cookies)


def key_in_headers(headers: MultiMapping[str]) -> str | None:
    """Return the key in X-API-Key, else the key in Authorization; None if neither holds one.

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
    """Return the key in ``?token=``; None if there is none.

    Raises:
        AmbiguousKey: as `presented_key`.
    """
    sent = query.getall(QUERY_PARAMETER, ())
    return (_only(sent, QUERY_PARAMETER) or None) if sent else None


def key_in_cookies(header: str, *, is_first: bool = False) -> str | None:
    """Return the value of the gateway's own cookie in a Cookie header, the last one if there are several.

    With `is_first` return the first one: browsers put cookies for longer paths first (RFC 6265, section 5.4), so under
    a path prefix the first is the gateway's own, and the last may be that of another gateway at the host's
    root. No other cookie is parsed, because a stranger's long header of many would take milliseconds.
    """
    own = (match for match in _OWN_COOKIE.finditer(header) if header[match.start() - 1 : match.start()] in _BETWEEN)
    found = next(own, None) if is_first else next(iter(deque(own, maxlen=1)), None)
    return found[1].strip().strip('"') or None if found is not None else None


def _only(found: Sequence[str], name: str) -> str:
    if len(found) > 1 and len(set(found)) > 1:
        raise AmbiguousKey(f"{name} is there {len(found)} times, with different values")
    return found[0].strip()


def _basic_password(credentials: str) -> str | None:
    """Return the password of Basic credentials (RFC 7617); if it is empty, the user, as some clients have one field.

    Return None if the credentials are not base64, not even ASCII, or not UTF-8 inside.
    """
    try:
        user, _, password = base64.b64decode(credentials, validate=True).decode("utf-8").partition(":")
    except ValueError:
        return None
    return password or user or None
