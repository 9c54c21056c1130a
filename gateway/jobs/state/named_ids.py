"""Ids that requests, answers and events of custom nodes name. Pure.

A node id such as ``5`` is an id only in a place that says so: a part of a path, or the value of a key such as
``node_id``. A prompt_id is one anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.errors import is_prompt_id
from gateway.jobs.state.request_fields import MAX_DEPTH, MAX_VALUES, Fields

MAX_IDS = 64
MAX_ID = 128
# A longer body is passed on unread.
MAX_READ = 64 * 1024
_MAX_HEARD = 1_000
# Containers that are put around parsed JSON before it is looked through.
_OWN = 2
_CLIENT_KEYS = frozenset({"clientid", "client_id", "sid"})
_ID_KEYS = frozenset({"id", "uid", "uuid", "unique", "node", "key"})
# A state's id: so that nothing common ("image", "v2", "12") is taken for one, it has a digit or many characters.
_STATE_ID = re.compile(r"(?=.*\d)[A-Za-z0-9_.:+-]{4,128}|[A-Za-z0-9_.:+-]{16,128}")
_QUOTED = re.compile(rb'"([A-Za-z0-9_.:+-]{4,128})"')
_SLICE = 256 * 1024


@dataclass(frozen=True, slots=True)
class NamedIds:
    """Ids that a request names, in the order in which they stand there, and its clientId.

    `is_whole` is False if the request may name more.
    """

    ids: tuple[str, ...] = ()
    client_id: str = ""
    is_whole: bool = True


def is_state_id(text: str) -> bool:
    """Return True if a text can be the id of a state that a custom node keeps."""
    return _STATE_ID.fullmatch(text) is not None


def in_value(value: Any) -> Iterator[str]:
    """Yield the ids in parsed JSON: values of keys that name an id, and prompt_ids anywhere. At most `MAX_IDS`.

    No more than `_MAX_HEARD` values are looked at, because events come often.
    """
    found = 0
    for key, each in islice(_scalars(value), _MAX_HEARD):
        text = _id_text(each)
        if text is not None and (_names_id(key) or is_prompt_id(text)):
            yield text
            found += 1
            if found >= MAX_IDS:
                return


def in_request(parts: Iterable[str], query: Iterable[tuple[str, str]], fields: Fields) -> NamedIds:
    """Return the ids that a request names.

    Args:
        parts: the parts of its path.
        query: its query.
        fields: the fields of its body.
    """
    named = list(parts)
    is_whole = all(len(part) <= MAX_ID for part in named)
    ids = dict.fromkeys(each for part in named if 0 < len(part) <= MAX_ID for each in _spellings(part))
    client_id = ""
    for key, value in (*query, *fields.values):
        for name, each in _scalars({key: value}):
            text = _id_text(each)
            if text is None:
                continue
            if name in _CLIENT_KEYS:
                client_id = client_id or text
            elif _names_id(name) or is_prompt_id(text):
                ids.update(dict.fromkeys(_spellings(text)))
    return NamedIds(tuple(ids)[:MAX_IDS], client_id, is_whole and fields.is_whole and len(ids) <= MAX_IDS)


def _json(data: bytes) -> Any:
    try:
        return json_codec.read_bounded(data, MAX_DEPTH, MAX_VALUES)[0]
    except (json_codec.TooMuchJson, json_codec.MalformedJson):
        return None


def read_answer(body: bytes) -> list[str]:
    """Return the ids of states that a JSON answer names."""
    return [text for text in in_value(_json(body)) if is_state_id(text)]


def in_prompt(prompt: bytes, wanted: Mapping[str, Any]) -> Generator[None, None, set[str]]:
    """Return those of the wanted ids that stand as texts of their own in an encoded prompt, in short steps."""
    found: set[str] = set()
    for start in range(0, len(prompt), _SLICE):
        for match in _QUOTED.finditer(prompt, start, start + _SLICE + MAX_ID + 2):
            text = match[1].decode()
            if text in wanted:
                found.add(text)
        yield
    return found


def _scalars(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each text and number with the key nearest to it, in lower case; not deeper, nor more, than is read."""
    left: list[tuple[str, Any, int]] = [("", value, 0)]
    seen = 0
    while left and seen < MAX_VALUES + _OWN:
        key, each, depth = left.pop()
        seen += 1
        if isinstance(each, dict):
            if depth <= MAX_DEPTH:
                left += [(str(name).lower(), item, depth + 1) for name, item in reversed(each.items())]
        elif isinstance(each, list):
            if depth <= MAX_DEPTH:
                left += [(key, item, depth + 1) for item in reversed(each)]
        else:
            yield key, each


def _names_id(key: str) -> bool:
    return key not in _CLIENT_KEYS and (key in _ID_KEYS or key.endswith(("_id", "-id", "nodeid", "promptid")))


def _spellings(text: str) -> tuple[str, ...]:
    """Return an id, and the number that a custom node may read in it with `int`, such as 7 in `` 07``."""
    try:
        number = str(int(text))
    except ValueError:
        return (text,)
    return (text,) if number == text else (text, number)


def _id_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value if 0 < len(value) <= MAX_ID else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18
    return str(value) if is_number else None
