"""Put the names that a tenant knows in place of secret ones, in whatever a backend says of a job. Pure.

Files in outputs are renamed as files (`gateway.jobs.outputs`). This is for all other texts: errors, the inputs that an
error repeats, texts that a node shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.comfy import wire
from gateway.tenants.secret_names import holds_secret

MAX_DEPTH = 64
# In a longer text a secret name is looked for faster than by the pattern.
LONG = 1_000
_SEPARATORS = r"(?:[/\\]+|%2[Ff]|%5[Cc])"
# In JSON a backslash is written as two. A single one begins an escape, and belongs to what comes after the name.
_SEPARATORS_IN_JSON = r"(?:(?:/|\\\\|\\/)+|%2[Ff]|%5[Cc])"
# What may be before a secret name: no letter and no digit, save those of an escape in JSON.
_BEFORE = r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9a-f]{4})|(?<=%2[Ff])|(?<=%5[Cc]))"
_NUMBERED = r"(?:~[0-9a-f]{8})?(?: \(\d+\))?(?:\.[A-Za-z0-9]{1,10})?"


def _pattern(separators: str) -> str:
    # An upload's folder, with the file in it as ComfyUI may have called it, or its name in the root.
    upload = rf"u(?:{separators}|-)([0-9a-f]{{32}})(?:{separators}f){{0,2}}"
    # A backslash before a quote is no separator: it stands in JSON that a text holds.
    output = rf"o{separators}([0-9a-f]{{32}})(?:{separators}f)?(?:(?!\\+\"){separators})?"
    return rf"{_BEFORE}(?:{upload}{_NUMBERED}|{output})"


_SECRET = re.compile(_pattern(_SEPARATORS))
_SECRET_BYTES = re.compile(_SECRET.pattern.encode())
_SECRET_IN_JSON = re.compile(_pattern(_SEPARATORS_IN_JSON).encode())
# How a text is found that may hold a secret name, at the cost of a look.
_HINTS = ("u-", "u/", "o/", "u\\", "o\\", "u%", "o%")


def reveal(text: str, names: Mapping[str, str]) -> str:
    """Return a text with the tenant's names in place of secret ones.

    Args:
        names: the paths of the job's uploads as the tenant knows them, by the 32 digits of their secrets. A secret that
            is none of these is taken out.
    """
    if len(text) < 34 or not any(hint in text for hint in _HINTS):
        return text
    if len(text) > LONG and not holds_secret(text):
        return text
    return _SECRET.sub(lambda match: names.get(match[1] or "", ""), text)


def reveal_json(raw: bytes, names: Mapping[str, str]) -> bytes:
    """Return JSON with the tenant's names in place of secret ones, in all texts."""
    if len(raw) > LONG and not holds_secret(raw):
        return raw
    encoded = {secret.encode(): wire.dumps(name)[1:-1] for secret, name in names.items()}
    return _SECRET_IN_JSON.sub(lambda match: encoded.get(match[1] or b"", b""), raw)


def reveal_bytes(data: bytes, names: Mapping[str, str]) -> bytes:
    """Return a binary message with the tenant's names in place of secret ones."""
    encoded = {secret.encode(): name.encode("utf-8", "replace") for secret, name in names.items()}
    return _SECRET_BYTES.sub(lambda match: encoded.get(match[1] or b"", b""), data)


def reveal_value(value: Any, names: Mapping[str, str], depth: int = MAX_DEPTH) -> Any:
    """Return a JSON value with the tenant's names in place of secret ones. Untouched parts are shared."""
    if isinstance(value, str):
        return reveal(value, names)
    if not isinstance(value, (dict, list)):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        copy = {reveal(key, names): reveal_value(item, names, depth - 1) for key, item in value.items()}
        is_same = (
            all(new is old for new, old in zip(copy.values(), value.values(), strict=False))
            and copy.keys() == value.keys()
        )
        return value if is_same else copy
    items = [reveal_value(item, names, depth - 1) for item in value]
    return value if all(new is old for new, old in zip(items, value, strict=True)) else items
