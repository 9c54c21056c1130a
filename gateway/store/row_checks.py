"""Checks of the journal's rows: one judgement for reading, `journal check` and `journal recover`."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from types import NoneType

from gateway.comfy import json_codec
from gateway.comfy.jobs_api import listed

# Judges a row of the table of open jobs; returns what is wrong with it, or an empty text.
JudgeJob = Callable[[Mapping[str, object]], str]
# The columns of an ended job that a start reads, and what they hold.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "tenant": str,
    "prompt_id": str,
    "backend": (str, NoneType),
    "upstream_id": str,
    "number": (int, float),
    "outcome": str,
    "digest": (bytes, NoneType),
    "node_errors": (bytes, NoneType),
    "summary": bytes,
}
# Of a longer entry only the ends are looked at when it is read, because parsing it would hold the loop.
PARSED_WHEN_READ = 64 * 1024


class Unsound(Exception):
    """Bytes in the journal that are not as they were written; the text names the fault."""


def unpack(packed: object) -> bytes:
    """Return the JSON of a history entry as it is kept.

    Raises:
        Unsound: it is no history entry.
    """
    try:
        entry = zlib.decompress(packed)  # type: ignore[arg-type]
    except (zlib.error, TypeError) as error:
        raise Unsound(f"its bytes are not those that were written ({error})") from error
    is_object = entry[:1] == b"{" and entry[-1:] == b"}"
    if not is_object or (len(entry) <= PARSED_WHEN_READ and not _is_object(entry)):
        raise Unsound("it is no JSON object")
    return entry


def _is_object(entry: bytes) -> bool:
    try:
        return isinstance(json_codec.loads(entry), dict)
    except json_codec.MalformedJson:
        return False


def fault(table: str, row: Mapping[str, object], judge_job: JudgeJob) -> str:
    """Return the fault of a row, in a sentence; an empty text if it has none."""
    if table == "history":
        what = _entry_fault(row)
    elif table == "jobs":
        what = judge_job(row)
    else:
        return ""
    name = "the history entry" if table == "history" else "the open job"
    return f"{name} {row.get('prompt_id')} of tenant {row.get('tenant')} is damaged: {what}" if what else ""


def are_columns(values: Sequence[object]) -> bool:
    """Return True if the first columns of an ended job, in the table's order, have the right types."""
    return all(isinstance(value, type_) for value, type_ in zip(values, _TYPES.values(), strict=False))


def _entry_fault(row: Mapping[str, object]) -> str:
    if not are_columns([row.get(name) for name in _TYPES]):
        return "a column holds something else than it should"
    try:
        if not _is_object(unpack(row["entry"])):
            return "it is no JSON object"
    except Unsound as error:
        return str(error)
    return "" if is_summary(row["summary"]) else "its summary can't be read"


def is_summary(summary: object) -> bool:
    """Return True if the summary of an ended job can be read."""
    try:
        listed(json_codec.loads(summary))  # type: ignore[arg-type]
    except (json_codec.MalformedJson, LookupError, TypeError, AttributeError):
        return False
    return True


def judge_json(row: Mapping[str, object]) -> str:
    """Judge an open job by its JSON alone."""
    try:
        json_codec.loads(row["submission"])  # type: ignore[arg-type]
    except (json_codec.MalformedJson, TypeError, AttributeError):
        return "its prompt is no JSON"
    return ""
