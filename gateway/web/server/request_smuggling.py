"""Refuse requests that two servers might read differently, because one of them may be a proxy before us.

aiohttp's parser (llhttp, strict) refuses most of it: Content-Length beside Transfer-Encoding, two lengths, lengths that
are no digits, folded lines, bare CR or LF, NUL, names with a blank. What it lets pass is looked at here.
"""

from __future__ import annotations

import logging
import re
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11

from gateway.web.server.parser_feed import MAX_TARGET

# A host as it stands in a header (RFC 3986, section 3.2.2), with its port.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?")
_SCHEME = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
# A domain name has no more characters (RFC 1035, section 2.3.4).
MAX_HOST = 255
# Maximum size of each remembered host.
MAX_HOSTS_BYTES = 512
# aiohttp looks for a route once for each part of a path, and each look-up takes as long as the path is.
MAX_PARTS = 200
MAX_QUERY_FIELDS = 1000
# aiohttp parses a Content-Type as if it were an e-mail's: 16 KB of parameters would take 100 ms.
MAX_CONTENT_TYPE = 256
# Maximum number of remembered hosts that were found well formed.
MAX_HOSTS = 1024
_hosts_known: set[str | None] = set()
# Their answers would show others' headers (RFC 9110, section 9.3.8), or open a tunnel.
_NEVER: Final = frozenset({"CONNECT", "TRACE"})


def fault(message: RawRequestMessage) -> tuple[int, str] | None:
    """Return the status and the reason to refuse a request and close its connection; None if it is well formed."""
    # Each request passes here, so the usual form is checked first, and the rest for other forms only.
    host, version = message.headers.get("Host"), message.version
    is_usual = version is HttpVersion11 and message.method not in _NEVER and message.path[:1] == "/"
    kind = message.headers.get("Content-Type")
    if kind is not None and len(kind) > MAX_CONTENT_TYPE:
        return 431, f"the Content-Type has more than {MAX_CONTENT_TYPE} characters"
    if is_usual and not message.chunked and host in _hosts_known and len(message.path) <= MAX_PARTS:
        return None
    if len(message.path) > MAX_TARGET:
        return 414, f"the target has more than {MAX_TARGET} bytes"
    path, _, query = message.path.partition("?")
    if path.count("/") > MAX_PARTS:
        return 414, f"the path has more than {MAX_PARTS} parts"
    if query.count("&") > MAX_QUERY_FIELDS:
        return 414, f"the query has more than {MAX_QUERY_FIELDS} fields"
    if version not in (HttpVersion11, HttpVersion10):
        return 505, "HTTP/1.1 and HTTP/1.0 are spoken here"
    if message.method in _NEVER:
        return 405, f"{message.method} is not answered"
    if host is not None and not _is_host(host):
        return 400, "the Host header holds no host"
    if not message.path.startswith("/") and not _is_ours(message, host):
        return 400, "the target is neither a path nor of the host that the Host header names"
    if "Transfer-Encoding" in message.headers and (version == HttpVersion10 or _coding(message) != "chunked"):
        return 400, "no Transfer-Encoding but chunked is known, and none in HTTP/1.0"
    return None


def _is_host(host: str) -> bool:
    if len(host) > MAX_HOST + len(":65535") or _HOST.fullmatch(host) is None:
        return False
    if len(_hosts_known) < MAX_HOSTS:
        _hosts_known.add(host)
    return True


def _is_ours(message: RawRequestMessage, host: str | None) -> bool:
    """Return True for ``OPTIONS *``, or for an absolute URL of the host in the Host header (RFC 9112, section 3.2)."""
    if message.path == "*":
        return message.method == "OPTIONS"
    match = _SCHEME.match(message.path)
    return match is not None and match[1].lower() == (host or "").lower() != ""


def _coding(message: RawRequestMessage) -> str:
    return ",".join(message.headers.getall("Transfer-Encoding")).strip().lower()


def quiet_logger() -> logging.Logger:
    """Return a logger for aiohttp's server that writes nothing about requests that are not HTTP.

    Anybody can send such requests by the thousand, and a line may repeat a part of them that is somebody's key.
    """
    logger = logging.getLogger("gateway.http")
    logger.addFilter(_is_not_a_callers)
    return logger


def _is_not_a_callers(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
