"""Metadata and priority of a job: both forms of metadata, one text or a map of labels, and filters by labels. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec
from gateway.web.http.v2_errors import V2Error

MAX_TEXT = 1_024
MAX_LABELS, MAX_VALUE, MAX_FILTERS = 16, 256, 3
MAX_PRIORITY = 1_000_000
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,40}")
# Halves of characters, which UTF-8 lacks, so that many parsers refuse a whole document for one.
_HALF = re.compile("[\ud800-\udfff]")
# Those, control characters, and those that turn the direction of a text.
_BAD = re.compile("[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Note:
    """Metadata and priority that a submission gave its job."""

    metadata: str | Mapping[str, str] | None = None
    priority: int | None = None

    @property
    def is_empty(self) -> bool:
        """Return True if there is nothing to keep."""
        return not self.metadata and self.priority is None

    @property
    def labels(self) -> Mapping[str, str]:
        """Return the labels; none if the metadata is one text."""
        return self.metadata if isinstance(self.metadata, dict) else {}

    def shown(self) -> dict[str, Any]:
        """Return the fields of a job; a job without metadata or priority has no such field."""
        fields: dict[str, Any] = {"metadata": self.metadata} if self.metadata else {}
        return fields if self.priority is None else {**fields, "priority": self.priority}

    def encode(self) -> str:
        """Return the note as the journal keeps it."""
        return json_codec.dumps({"metadata": self.metadata, "priority": self.priority}).decode()


NO_NOTE = Note()


def decode(encoded: str) -> Note:
    """Return a note that the journal has kept; an empty one if it is damaged."""
    try:
        value = json_codec.loads(encoded)
        return Note(value.get("metadata"), value.get("priority"))
    except (json_codec.MalformedJson, AttributeError):
        return NO_NOTE


def note_of(body: Mapping[str, Any]) -> Note:
    """Return the note in the body of POST /jobs.

    Raises:
        V2Error: metadata or priority is malformed.
    """
    return Note(_metadata(body.get("metadata")), _priority(body.get("priority")))


def _metadata(value: Any) -> str | Mapping[str, str] | None:
    if value is None:
        return None
    if isinstance(value, str):
        if _size(value) > MAX_TEXT:
            raise V2Error(422, "invalid_request", f"'metadata' exceeds {MAX_TEXT} UTF-8 bytes.")
        if _HALF.search(value):
            raise V2Error(422, "invalid_request", "'metadata' has a lone surrogate, which UTF-8 can't hold.")
        return value
    if not isinstance(value, dict):
        raise V2Error(422, "invalid_request", "'metadata' must be a string, or a map of labels.")
    if len(value) > MAX_LABELS:
        said = f"'metadata' has {len(value)} labels; at most {MAX_LABELS} are taken."
        raise V2Error(422, "metadata_invalid", said, {"count": len(value)})
    for key, label in value.items():
        if _KEY.fullmatch(key) is None:
            said = "A label's name has 1 to 40 of the characters A-Z, a-z, 0-9, '_', '-' and '.'."
            raise V2Error(422, "metadata_invalid", said, {"key": key[:100]})
        if not isinstance(label, str) or _size(label) > MAX_VALUE or _BAD.search(label):
            said = f"The label '{key}' must be a text of at most {MAX_VALUE} bytes of UTF-8 without control characters."
            raise V2Error(422, "metadata_invalid", said, {"key": key})
    return value


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise V2Error(422, "invalid_request", "'priority' must be an integer (advisory).")
    if abs(value) > MAX_PRIORITY:
        said = f"'priority' must be between -{MAX_PRIORITY} and {MAX_PRIORITY}."
        raise V2Error(422, "invalid_request", said)
    return value


def filters_of(query: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the labels that a list is filtered by: ``metadata[KEY]=VALUE``.

    Raises:
        V2Error: there are too many, or one is malformed.
    """
    found: dict[str, str] = {}
    for name, value in query:
        if not name.startswith("metadata"):
            continue
        match = _FILTER.fullmatch(name)
        is_label = match is not None and _KEY.fullmatch(match[1]) is not None
        if match is None or not is_label or _size(value) > MAX_VALUE or _BAD.search(value) or match[1] in found:
            said = "A filter by a label is metadata[NAME]=VALUE, each name once."
            raise V2Error(400, "invalid_metadata_filter", said)
        found[match[1]] = value
    if len(found) > MAX_FILTERS:
        said = f"At most {MAX_FILTERS} filters by labels are taken."
        raise V2Error(400, "invalid_metadata_filter", said)
    return found
