"""Replace secret names by the names that a tenant knows, in all data of a job from its backend. Pure.

Files in outputs are renamed as files (`gateway.jobs.files.outputs`). This module handles all other texts: errors, the
inputs that an error repeats, texts that a node shows.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any, AnyStr

from gateway.comfy import json_codec
from gateway.comfy.file_refs import finished
from gateway.tenants.secret_names import holds_secret

MAX_DEPTH = 64
# A longer text is searched with `holds_secret` first, because that is faster than the pattern.
LONG = 1_000
_SEPARATORS = r"(?:[/\\]+|%2[Ff]|%5[Cc])"
# In JSON a backslash is written as two. A single one begins an escape, and belongs to what comes after the name.
_SEPARATORS_IN_JSON = r"(?:(?:/|\\\\|\\/)+|%2[Ff]|%5[Cc])"
# The text before a secret name: no letter and no digit, except those of an escape in JSON. The check comes behind the
# name's first letter, because a pattern that begins with a letter is found several times as fast.
_BEFORE = r"(?:(?<![A-Za-z0-9].)|(?<=\\[bfnrt].)|(?<=\\u[0-9a-f]{4}.)|(?<=%2[Ff].)|(?<=%5[Cc].))"
_NUMBERED = r"(?:~[0-9a-f]{8})?(?: \(\d+\))?(?:\.[A-Za-z0-9]{1,10})?"


def _pattern(separators: str) -> str:
    # An upload's folder, with the file in it as ComfyUI may have called it, or its name in the root.
    upload = rf"u{_BEFORE}(?:{separators}|-)([0-9a-f]{{32}})(?:{separators}f){{0,2}}"
    # A backslash before a quote is no separator, because it belongs to JSON inside a text.
    output = rf"o{_BEFORE}{separators}([0-9a-f]{{32}})(?:{separators}f)?(?:(?!\\+\"){separators})?"
    return rf"(?:{upload}{_NUMBERED}|{output})"


_SECRET = re.compile(_pattern(_SEPARATORS))
_SECRET_BYTES = re.compile(_SECRET.pattern.encode())
_SECRET_IN_JSON = re.compile(_pattern(_SEPARATORS_IN_JSON).encode())
# Substrings of a text that may hold a secret name, for a fast check.
_HINTS = ("u-", "u/", "o/", "u\\", "o\\", "u%", "o%")


# Characters that are searched in one step, and the overlap of two steps. No secret name is longer, except with
# thousands of separators.
STEP, OVERLAP = 64 * 1024, 4 * 1024
# More than the characters before a name that decide if it is one.
_BEFORE_LENGTH = 8
_FIRST = ("u", "o", ord("u"), ord("o"))
# Items of a list that are searched in one step.
ITEMS = 16


def reveal(text: str, names: Mapping[str, str]) -> str:
    """Return a text with the tenant's names in place of secret ones.

    Args:
        names: the paths of the job's uploads as the tenant knows them, by the 32 digits of their secrets. Any other
            secret is removed.
    """
    if len(text) < 34 or not any(hint in text for hint in _HINTS):
        return text
    if len(text) > LONG and not holds_secret(text):
        return text
    return _SECRET.sub(lambda match: names.get(match[1] or "", ""), text)


def reveal_json(raw: bytes, names: Mapping[str, str]) -> bytes:
    """Return JSON with the tenant's names in place of secret ones, in all texts."""
    return finished(revealing_json(raw, names))


def revealing_json(raw: bytes, names: Mapping[str, str]) -> Generator[None, None, bytes]:
    """Do what `reveal_json` does in short steps."""
    if len(raw) > LONG and not (yield from holding_secret(raw)):
        return raw
    encoded = {secret.encode(): json_codec.dumps(name)[1:-1] for secret, name in names.items()}
    told = []
    for piece in _pieces(raw, _SECRET_IN_JSON):
        told.append(_SECRET_IN_JSON.sub(lambda match: encoded.get(match[1] or b"", b""), piece))
        yield
    return b"".join(told)


def holding_secret(raw: bytes) -> Generator[None, None, bool]:
    """Do what `holds_secret` does in short steps."""
    for start in range(0, len(raw), STEP):
        if holds_secret(raw[start : start + STEP + OVERLAP]):
            return True
        yield
    return False


def _pieces(text: AnyStr, secret: re.Pattern[AnyStr]) -> Iterator[AnyStr]:
    """Yield a text in pieces that cut no secret name, nor the characters before one that mark it as a name."""
    start = 0
    while len(text) - start > STEP:
        # Begin no piece with the first letter of a name, because the characters before it would be unknown.
        end = start + STEP - (text[start + STEP] in _FIRST)
        for match in secret.finditer(text, end - OVERLAP, end + OVERLAP):
            if match.start() - _BEFORE_LENGTH <= end < match.end():
                end = match.end()
        yield text[start:end]
        start = end
    yield text[start:]


def reveal_bytes(data: bytes, names: Mapping[str, str]) -> bytes:
    """Return a binary message with the tenant's names in place of secret ones."""
    encoded = {secret.encode(): name.encode("utf-8", "replace") for secret, name in names.items()}
    return _SECRET_BYTES.sub(lambda match: encoded.get(match[1] or b"", b""), data)


def reveal_value(value: Any, names: Mapping[str, str], depth: int = MAX_DEPTH) -> Any:
    """Return a JSON value with the tenant's names in place of secret ones. Untouched parts are shared."""
    return finished(revealing_value(value, names, depth))


def revealing_value(value: Any, names: Mapping[str, str], depth: int = MAX_DEPTH) -> Generator[None, None, Any]:
    """Do what `reveal_value` does in short steps."""
    if isinstance(value, str):
        return reveal(value, names) if len(value) <= STEP else (yield from _revealing_long(value, names))
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        copy = {}
        for key, item in value.items():
            copy[reveal(key, names)] = yield from revealing_value(item, names, depth - 1)
            yield
        is_same = (
            all(new is old for new, old in zip(copy.values(), value.values(), strict=False))
            and copy.keys() == value.keys()
        )
        return value if is_same else copy
    items = []
    for place, item in enumerate(value):
        items.append((yield from revealing_value(item, names, depth - 1)))
        if place % ITEMS == 0:
            yield
    return value if all(new is old for new, old in zip(items, value, strict=True)) else items


def _revealing_long(text: str, names: Mapping[str, str]) -> Generator[None, None, str]:
    if not (yield from holding_secret(text.encode("utf-8", "replace"))):
        return text
    told = []
    for piece in _pieces(text, _SECRET):
        told.append(reveal(piece, names))
        yield
    return "".join(told)
