"""Fields of a request's short body, as a backend may read them. Pure.

A custom node reads the body in its own way, whatever Content-Type says, so each way in which it can be read counts. If
a backend may find more in a body than is found here, the fields are not whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from gateway.comfy import json_codec

MAX_DEPTH, MAX_VALUES = 20, 10_000
_MAX_FIELDS = 100
# Encodings in which the bytes of an id are those of ASCII.
_PLAIN = frozenset({"", "utf-8", "utf8", "ascii", "us-ascii"})
# A part's headers. Any other may change how its value is read, such as Content-Transfer-Encoding.
_NAMED = re.compile(
    r'content-disposition: ?form-data; ?name="([^"\\]{1,128})"(; ?filename="[^"\\]*")?(?:; ?filename\*=[^;"]*)?', re.I
)
_TYPED = re.compile(r"content-type: ?[^;]*(?:; ?charset=(?:utf-8|us-ascii))?|content-length: ?\d+", re.I)
# The name of the field that tells the encoding of all others.
_CHARSET = "_charset_"
_MAX_HEAD = 1_024


@dataclass(frozen=True, slots=True)
class Fields:
    """Names and values of a body's fields; `is_whole` unless a backend may find more in it."""

    values: tuple[tuple[str, Any], ...] = ()
    is_whole: bool = True


def fields_of(body: bytes, content_type: str, charset: str | None = None) -> Fields:
    """Return the fields of a short body that is JSON or a form; none if it is neither. A field's own JSON is parsed."""
    found, is_whole = _json_fields(body)
    if content_type.startswith("multipart/"):
        form, is_form_whole = _multipart(body.decode("utf-8", "replace"))
    elif content_type == "application/x-www-form-urlencoded":
        form, is_form_whole = _urlencoded(body.decode("utf-8", "replace"))
    else:
        form, is_form_whole = [], True
    is_plain = (charset or "").lower() in _PLAIN
    return Fields((*form, *found), is_whole and is_form_whole and is_plain)


def _json_fields(body: bytes) -> tuple[list[tuple[str, Any]], bool]:
    value, is_whole = _json(body)
    if value is None:
        return [], is_whole
    fields, is_read = _parsed(value.items() if isinstance(value, dict) else [("", value)])
    # The fields of a document that was encoded twice are those of the inner one.
    inner = fields[0][1] if len(fields) == 1 and not fields[0][0] else None
    return list(inner.items()) if isinstance(inner, dict) else fields, is_whole and is_read


def _urlencoded(text: str) -> tuple[list[tuple[str, Any]], bool]:
    try:
        return _parsed(parse_qsl(text, max_num_fields=_MAX_FIELDS))
    except ValueError:
        return [], False


def _multipart(text: str) -> tuple[list[tuple[str, Any]], bool]:
    parts = text.split("\r\n--", _MAX_FIELDS)
    is_whole = len(parts) <= _MAX_FIELDS and parts[-1].rstrip().endswith("--")
    pairs = []
    for part in parts if is_whole else parts[:_MAX_FIELDS]:
        head, _, value = part.partition("\r\n\r\n")
        if part is parts[-1] and not value and "\n" not in head.rstrip():
            # The end of the form.
            continue
        named = _name(head)
        if named is None or named[0].lower() == _CHARSET:
            is_whole = False
        elif not named[1]:
            pairs.append((named[0], value))
    values, is_read = _parsed(pairs)
    return values, is_whole and is_read


def _name(head: str) -> tuple[str, bool] | None:
    """Return a part's name, and True if it is a file; None if its head is not as clients write it."""
    lines = head.split("\r\n")[1:] if len(head) <= _MAX_HEAD else []
    names = [match for line in lines if (match := _NAMED.fullmatch(line)) is not None]
    others = [line for line in lines if _NAMED.fullmatch(line) is None]
    if len(names) != 1 or not all(map(_TYPED.fullmatch, others)):
        return None
    return names[0][1], names[0][2] is not None


def _parsed(pairs: Iterable[tuple[str, Any]]) -> tuple[list[tuple[str, Any]], bool]:
    """Parse the JSON in fields that are texts."""
    found, is_whole = list[tuple[str, Any]](), True
    for name, text in pairs:
        is_json = isinstance(text, str) and text.lstrip()[:1] in ("{", "[")
        value, is_read = _json(text.encode("utf-8", "replace")) if is_json else (text, True)
        # A text that only begins like JSON stays a text.
        found.append((name, text if value is None and is_read else value))
        is_whole = is_whole and is_read
    return found, is_whole


def _json(data: bytes) -> tuple[Any, bool]:
    """Return the value of a document, None if it is no JSON; and False if it is more JSON than is read."""
    try:
        return json_codec.read_bounded(data, MAX_DEPTH, MAX_VALUES)[0], True
    except json_codec.TooMuchJson:
        return None, False
    except json_codec.MalformedJson:
        return None, True
