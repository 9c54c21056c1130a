"""Remove dates of conditional requests that aiohttp fails over, in the gateway and in each ComfyUI.

aiohttp raises OverflowError for a year of ten digits or more. The answer would be a 500, or a broken connection, as
if the gateway or a backend had failed. An unreadable date is no condition (RFC 9110, section 13.1).
"""

from __future__ import annotations

from aiohttp.helpers import parse_http_date
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

_IF_RANGE = "If-Range"
_DATES = ("If-Modified-Since", "If-Unmodified-Since", _IF_RANGE)


def without_bad_dates(message: RawRequestMessage) -> RawRequestMessage:
    """Return a request's head without the dates that can't be read. Without If-Range, its Range goes, too."""
    given = message.headers
    bad = [name for name in _DATES if name in given and _fails(given[name])]
    if not bad:
        return message
    headers = CIMultiDict(given)
    for name in (*bad, *(["Range"] if _IF_RANGE in bad else [])):
        headers.popall(name, None)
    dropped = frozenset(name.lower().encode() for name in given if name not in headers)
    raw = tuple(each for each in message.raw_headers if each[0].lower() not in dropped)
    return message._replace(headers=CIMultiDictProxy(headers), raw_headers=raw)


def _fails(date: str) -> bool:
    try:
        parse_http_date(date)
    except OverflowError:
        return True
    return False
