"""Content safety: files that callers made must not run as pages of the gateway's.

A page from the gateway acts in the name of its reader, who may be an admin. ComfyUI since 0.33 sends such files as
downloads (server.py, view_image; app/user_manager.py). Older versions do not, and custom nodes' viewers do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from multidict import CIMultiDict

from gateway.tenants.roles import plain

# A browser may run these types, so they are sent as downloads (folder_paths.py, DANGEROUS_CONTENT_TYPES).
ACTIVE = frozenset(
    """text/html text/html-sandboxed application/xhtml+xml text/javascript application/javascript
    application/x-javascript application/ecmascript text/css image/svg+xml application/xml text/xml
    message/rfc822 multipart/related multipart/x-mixed-replace application/pdf+xml""".split()
)
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
# If a browser shows the file as a page after all, its scripts do not run, and it has no origin.
SANDBOX = {**NOSNIFF, "Content-Security-Policy": "sandbox"}
_HTML = re.compile(r"\s*(text/html|application/xhtml\+xml)\b", re.IGNORECASE)


def is_active(content_type: str) -> bool:
    """Return True if a browser might run content of this type."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ACTIVE or kind.endswith(("+xml", "/xml"))


def defuse(headers: CIMultiDict[str], destination: str | None, *, is_style: bool = False) -> None:
    """Change the headers of an answer with a caller's file, so that no browser runs the file.

    Args:
        headers: the answer's headers; changed.
        destination: the request's Sec-Fetch-Dest. In an ``<img>`` an SVG runs no scripts, and only the browser itself
            can send this destination.
        is_style: True if the file is the one style sheet that the web UI reads from a user's files.
    """
    if headers.get("Content-Length") == "0":
        # If the file is empty, leave the type, because a browser would complain about the type of an empty style sheet.
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
    """Forbid shared caches to keep an answer, because the key that tells callers apart is not in the URL.

    A shared cache may else keep an answer with a Last-Modified (RFC 9111, sections 3 and 4.2.2), if the key is in a
    cookie or in X-API-Key.
    """
    said = headers.get("Cache-Control", "")
    if not re.search(r"\b(private|no-store)\b", said, re.IGNORECASE):
        kept = [each for part in said.split(",") if (each := part.strip()) and each.lower() != "public"]
        headers["Cache-Control"] = ", ".join(["private", *(each for each in kept if not each.startswith("s-maxage"))])


def is_callers(path: str) -> bool:
    """Return True if a path that is passed on leads to a file that some caller wrote."""
    parts, under_api = (found := plain(path)).parts, found.under_api
    return parts[:1] == ("userdata",) or (under_api and parts[:1] == ("assets",))


def is_style(path: str) -> bool:
    """Return True if a path is a user's own style sheet (app/user_manager.py, getuserdata)."""
    return plain(path).parts == ("userdata", "user.css")


def guard_page(headers: CIMultiDict[str], origins: Sequence[str]) -> None:
    """Forbid other pages to frame a page of the web UI, and keep its URL, which may hold a key, out of Referer.

    Args:
        headers: the answer's headers; changed if the answer is a page.
        origins: origins that may frame the page besides its own.
    """
    if not _HTML.match(headers.get("Content-Type", "")):
        return
    headers.add("Content-Security-Policy", " ".join(["frame-ancestors 'self'", *origins]))
    if not origins:
        headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("X-Content-Type-Options", "nosniff")
