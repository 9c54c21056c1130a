"""Content safety: files that callers made must not run as pages of the gateway's.

A page from here acts in the name of whoever looks at it, an admin say. ComfyUI since 0.33 gives such files as downloads
(server.py, view_image; app/user_manager.py); older ones do not, nor do viewers of custom nodes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from multidict import CIMultiDict

from gateway.tenants.roles import plain

# A browser may run these; they are given as downloads (folder_paths.py, DANGEROUS_CONTENT_TYPES).
ACTIVE = frozenset(
    """text/html text/html-sandboxed application/xhtml+xml text/javascript application/javascript
    application/x-javascript application/ecmascript text/css image/svg+xml application/xml text/xml
    message/rfc822 multipart/related multipart/x-mixed-replace application/pdf+xml""".split()
)
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
# Scripts in it do not run, and it is of no origin, should a browser show it as a page after all.
SANDBOX = {**NOSNIFF, "Content-Security-Policy": "sandbox"}
_HTML = re.compile(r"\s*(text/html|application/xhtml\+xml)\b", re.IGNORECASE)


def is_active(content_type: str) -> bool:
    """Whether a browser might run what has this type."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ACTIVE or kind.endswith(("+xml", "/xml"))


def defuse(headers: CIMultiDict[str], destination: str | None, *, is_style: bool = False) -> None:
    """Make the answer that carries a caller's file one that runs nowhere.

    Args:
        headers: the answer's; changed.
        destination: the request's Sec-Fetch-Dest. In an ``<img>`` an SVG runs no scripts, and only a browser itself can
            say that it is for one.
        is_style: whether it is the one style sheet that the web UI reads from a user's files.
    """
    if headers.get("Content-Length") == "0":
        # Nothing to be run. A browser would complain that a style sheet which is not there is of no style sheet's type.
        return
    kind = headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()
    headers.update(SANDBOX)
    keep_private(headers)
    if not is_active(kind) or (is_style and kind == "text/css"):
        return
    headers.update({"Vary": "Sec-Fetch-Dest", "Cache-Control": "no-store"})
    if kind == "image/svg+xml" and destination == "image":
        return
    headers["Content-Type"] = "application/octet-stream"
    _, _, named = headers.get("Content-Disposition", "").partition("filename")
    headers["Content-Disposition"] = f"attachment; filename{named}" if named else "attachment"


def keep_private(headers: CIMultiDict[str]) -> None:
    """No cache that several callers share may keep it: what tells them apart, the key, is not in its URL.

    Asked with a cookie or X-API-Key, it may else keep what has a Last-Modified (RFC 9111, sections 3 and 4.2.2).
    """
    said = headers.get("Cache-Control", "")
    if not re.search(r"\b(private|no-store)\b", said, re.IGNORECASE):
        kept = [each for part in said.split(",") if (each := part.strip()) and each.lower() != "public"]
        headers["Cache-Control"] = ", ".join(["private", *(each for each in kept if not each.startswith("s-maxage"))])


def is_callers(path: str) -> bool:
    """Whether a path that is passed on leads to what some caller wrote."""
    parts, under_api = (found := plain(path)).parts, found.under_api
    return parts[:1] == ("userdata",) or (under_api and parts[:1] == ("assets",))


def is_style(path: str) -> bool:
    """Whether it is a user's own style sheet (app/user_manager.py, getuserdata)."""
    return plain(path).parts == ("userdata", "user.css")


def guard_page(headers: CIMultiDict[str], origins: Sequence[str]) -> None:
    """Keep a page of the web UI's from being framed by others, and its URL, which may hold a key, from being told.

    Args:
        headers: the answer's; changed if it is a page.
        origins: those that may frame it besides its own.
    """
    if not _HTML.match(headers.get("Content-Type", "")):
        return
    headers.add("Content-Security-Policy", " ".join(["frame-ancestors 'self'", *origins]))
    if not origins:
        headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("X-Content-Type-Options", "nosniff")
