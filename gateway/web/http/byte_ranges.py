"""Conditional and range requests for a file that never changes (RFC 9110, sections 13 and 14). Pure.

Files on a backend and uploads are answered by aiohttp's FileResponse, so a stored file gets the same answers. There are
two differences: an ETag in If-Range is compared, and a quoted star is no star.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate

# An ETag of a list, or a character that ends the well-formed part of it.
_LISTED = re.compile(r'((?P<weak>W/)?"(?P<value>[!\x23-\x7e\x80-\xff]+)")(?:\s*,\s*|$)|(?P<garbage>.)')
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Answer to a request for a file: a status, the bytes from `start` to before `end`, and headers about them.

    The bytes are none unless the status is 200 or 206.
    """

    status: int
    start: int
    end: int
    headers: Mapping[str, str]


def select(headers: Mapping[str, str], size: int, etag: str, last_modified: float) -> Selection:
    """Return the answer to a GET or HEAD with these headers.

    Args:
        size: the file's, in bytes.
        etag: the file's strong ETag, without quotes.
        last_modified: the time of its last change, in seconds since 1970.
    """
    told = {"ETag": f'"{etag}"', "Last-Modified": _http_date(last_modified)}
    if not _meets_match(headers, etag, last_modified):
        return Selection(412, 0, 0, {"Content-Length": "0"})
    if _is_known(headers, etag, last_modified):
        return Selection(304, 0, 0, told)
    told["Accept-Ranges"] = "bytes"
    wanted = headers.get("Range")
    if wanted is None or not _applies(headers.get("If-Range"), etag, last_modified):
        return Selection(200, 0, size, {**told, "Content-Length": str(size)})
    part = _part(wanted, size)
    if part is None:
        return Selection(416, 0, 0, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    start, end = part
    shown = {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
    return Selection(206, start, end, {**told, **shown})


def _http_date(seconds: float) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(math.ceil(seconds)))


def _seconds_of(date: str | None) -> float | None:
    """Return a date in seconds since 1970; None if it is no date."""
    parts = parsedate(date) if date is not None else None
    try:
        return None if parts is None else datetime(*parts[:6], tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def _etags(header: str) -> Iterator[tuple[str, bool]]:
    """Yield each ETag of a list, and True if it is weak. The list ends where it is malformed."""
    for match in _LISTED.finditer(header):
        if match["garbage"]:
            return
        yield match["value"], match["weak"] is not None


def _meets_match(headers: Mapping[str, str], etag: str, last_modified: float) -> bool:
    """Return False if If-Match, or else If-Unmodified-Since, forbids an answer."""
    if match := headers.get("If-Match"):
        return match == "*" or (etag, False) in _etags(match)
    since = _seconds_of(headers.get("If-Unmodified-Since"))
    return since is None or last_modified <= since


def _is_known(headers: Mapping[str, str], etag: str, last_modified: float) -> bool:
    """Return True if the client has the file already, as If-None-Match, or else If-Modified-Since, tells."""
    if match := headers.get("If-None-Match"):
        return match == "*" or any(each == etag for each, _ in _etags(match))
    since = _seconds_of(headers.get("If-Modified-Since"))
    return since is not None and last_modified <= since


def _applies(condition: str | None, etag: str, last_modified: float) -> bool:
    """Return True if a Range header counts: If-Range tells the same file, or there is no If-Range."""
    if condition is None:
        return True
    since = _seconds_of(condition)
    return condition == f'"{etag}"' if since is None else last_modified <= since


def _part(wanted: str, size: int) -> tuple[int, int] | None:
    """Return the first byte of a range, and the one behind its last; None if it can't be had, or if there are several.

    A range without its beginning is the end of the file.
    """
    match = _RANGE.fullmatch(wanted)
    if match is None or match[0].endswith("=-"):
        return None
    try:
        first, last = (int(each) if each else None for each in match.groups())
    except ValueError:
        # Python reads no number of that many digits.
        return None
    if first is None:
        # A file's last 0 bytes are the whole file, as aiohttp has it.
        first, last = max(size - (last or size), 0), None
    if first >= size or (last is not None and last < first):
        return None
    return first, size if last is None else min(last + 1, size)
