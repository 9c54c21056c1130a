"""Long parts of JSON, cut out and put back. Pure.

An event or a history entry that takes long to read is mostly one long text or a long list of numbers: these name no
files. A process apart cuts them out, a mark stands for each, and the rest is short enough to be handled at once. In the
end a process apart puts them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.comfy import json_codec
from gateway.comfy.responses import LEFT_OUT, MAX_RESULT_VALUES

# Characters of a text, and items of a list of numbers, that are cut out.
LONG_TEXT, LONG_LIST = 16 * 1024, 500
# In what is not cut, longer texts are shortened to so many characters.
SHORT_TEXT = 4 * 1024
MAX_DEPTH = 200


class Cutter:
    """Cuts long parts out of a value.

    Args:
        mark: a text that nobody can guess, because a prompt that said it would get another tenant's text there.

    Attributes:
        parts: the parts that were cut out, by the text that stands for each.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self.parts: dict[str, Any] = {}

    def cut(self, value: Any, depth: int = 0) -> Any:
        """Return a copy without its long parts."""
        if isinstance(value, str):
            return self._cut_out(value) if len(value) > LONG_TEXT else value
        if depth > MAX_DEPTH:
            return value
        if isinstance(value, list):
            if len(value) > LONG_LIST and _is_numbers(value, depth):
                return self._cut_out(value)
            return [self.cut(item, depth + 1) for item in value]
        return {key: self.cut(item, depth + 1) for key, item in value.items()} if isinstance(value, dict) else value

    def _cut_out(self, value: Any) -> str:
        name = f"cut-{self._mark}-{len(self.parts)}"
        self.parts[name] = value
        return name


def _is_numbers(value: list[Any], depth: int) -> bool:
    if depth > MAX_DEPTH:
        return False
    return all(
        item is None or isinstance(item, (int, float)) or (isinstance(item, list) and _is_numbers(item, depth + 1))
        for item in value
    )


def shortened(value: Any, depth: int = 0) -> Any:
    """Return a copy whose long texts are cut off."""
    if isinstance(value, str):
        left = len(value) - SHORT_TEXT
        return value if left <= 0 else f"{value[:SHORT_TEXT]}… ({left} characters more)"
    if depth > MAX_DEPTH:
        return value
    if isinstance(value, list):
        return [shortened(item, depth + 1) for item in value]
    return {key: shortened(item, depth + 1) for key, item in value.items()} if isinstance(value, dict) else value


def filled(said: bytes, mark: str, parts: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield the pieces of an encoded value with the encoded parts where their marks stand."""
    place = 0
    for match in _marks(mark).finditer(said):
        part = parts.get(match[1].decode())
        if part is not None:
            yield said[place : match.start()]
            yield part
            place = match.end()
    yield said[place:]


def without_marks(said: bytes, mark: str) -> bytes:
    """Return an encoded value with a word where a long part was cut out."""
    return _marks(mark).sub('"…"'.encode(), said)


def _marks(mark: str) -> re.Pattern[bytes]:
    return re.compile(rb'"(cut-%b-[0-9]+)"' % re.escape(mark.encode()))


def cut_event(event: Any, cutter: Cutter, known: frozenset[str]) -> Any:
    """Return an event without its long parts: an ``executed`` loses those of its output, others get shorter texts.

    Args:
        known: the types of events that the gateway reads. Of others each long part is cut out.
    """
    data = event.get("data") if isinstance(event, dict) else None
    if not isinstance(data, dict):
        return event
    if event.get("type") == "executed":
        return {**event, "data": {**data, "output": cutter.cut(data.get("output"))}}
    return {**event, "data": shortened(data) if event.get("type") in known else cutter.cut(data)}


def cut_entry(entry: Any, cutter: Cutter, maximum: int) -> Any:
    """Return a history entry without the long parts of its outputs.

    Outputs that are too much even so are left out, the largest first, and the entry says which.

    Args:
        maximum: bytes that the rest may have.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("outputs") or {}, dict):
        return entry
    outputs = {node_id: cutter.cut(output) for node_id, output in (entry.get("outputs") or {}).items()}
    rest = {key: shortened(value) for key, value in entry.items() if key not in ("outputs", LEFT_OUT)}
    left_out = dict(entry.get(LEFT_OUT) or {})
    said = {node_id: json_codec.dumps_exact(output) for node_id, output in outputs.items()}
    sizes = {node_id: len(each) for node_id, each in said.items()}
    values = {node_id: json_codec.count_values(each) for node_id, each in said.items()}
    for node_id in sorted(outputs, key=lambda node_id: max(sizes[node_id], 100 * values[node_id]), reverse=True):
        if sum(sizes.values()) <= maximum and sum(values.values()) <= MAX_RESULT_VALUES:
            break
        left_out[node_id] = sizes.pop(node_id)
        del outputs[node_id], values[node_id]
    return {**rest, "outputs": outputs, **({LEFT_OUT: left_out} if left_out else {})}
