"""WebSocket messages: parse those of a ComfyUI's /ws, and encode frames for clients.

Types and order as recorded from ComfyUI 0.33.0 (tests/conformance/recordings); they are sent from server.py
(status, feature_flags), execution.py (execution_*, executing, executed), main.py (progress, executing with node null)
and comfy_execution/progress.py (progress_state, previews).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType
from typing import Any, Protocol

from gateway.comfy import json_codec
from gateway.comfy.responses import MAX_RESULT_VALUES, is_id

TERMINAL = frozenset({"execution_success", "execution_error", "execution_interrupted"})
LIFECYCLE = TERMINAL | {"execution_start", "execution_cached", "executing", "executed"}
# The slot of a frame that tells how its prompt ended.
TERMINAL_SLOT = "terminal"
# The slot of the frame that tells that its prompt began. A job's session is given one of them.
START_SLOT = "start"
PROGRESS = frozenset({"progress", "progress_state"})
# What is beyond the year 9999 is no time, and may not fit into what is made of it.
END_OF_TIME = 253_402_300_800_000


# Bytes of a text message. An ``executed`` may hold texts, or pictures as text. A smaller one than the second number is
# parsed in one piece, whatever is in it.
MAX_TEXT, MAX_SMALL = 8 * 2**20, 2**17
# Others have their turn while one with so many bytes is read.
LONG = 2**14
_NODE = (str, int, NoneType)
# The fields that are read of each event, with their types.
_FIELDS: dict[str, tuple[tuple[str, tuple[type, ...]], ...]] = {
    "execution_start": (),
    "execution_cached": (("nodes", (list,)),),
    "executing": (("node", _NODE),),
    "executed": (("node", _NODE), ("output", (dict, NoneType))),
    "progress": (("node", _NODE),),
    "progress_state": (("nodes", (dict, NoneType)),),
    "execution_success": (),
    "execution_interrupted": (("node_id", _NODE), ("node_type", (str, NoneType))),
    "execution_error": (
        ("node_id", _NODE),
        ("node_type", (str, NoneType)),
        ("exception_type", (str, NoneType)),
        ("exception_message", (str, NoneType)),
        ("traceback", (list, NoneType)),
    ),
}
# The types of events that the gateway reads.
KNOWN = frozenset(_FIELDS)


class Kind(StrEnum):
    """Kind of a frame, by which it may be delayed or left out: see `Frame`."""

    STATUS = "status"
    LIFECYCLE = "lifecycle"
    END = "end"
    RESULT = "result"
    PROGRESS = "progress"
    PREVIEW = "preview"
    OTHER = "other"


# Frames that are never left out, because nothing that comes later says the same.
KEPT = frozenset({Kind.LIFECYCLE, Kind.END, Kind.RESULT})


class Bulk(Protocol):
    """The large part of a message, in memory or elsewhere."""

    @property
    def size(self) -> int:
        """Return the size in bytes."""

    @property
    def held(self) -> int:
        """Return the bytes that count as memory; always the same number."""

    def pieces(self) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes, from the beginning."""


@dataclass(frozen=True, slots=True)
class Event:
    """One message of a backend, parsed. `raw` is the message as it came."""

    type: str
    data: dict[str, Any]
    prompt_id: str | None
    raw: bytes

    @property
    def ends_prompt(self) -> bool:
        """Return True if this is ``executing`` with node null, because the history entry is there by now (main.py)."""
        return self.type == "executing" and self.data.get("node") is None


@dataclass(slots=True)
class Frame:
    """One frame for a client.

    `kind` tells which frames may be left out. LIFECYCLE, RESULT and END frames always arrive. Of STATUS, PROGRESS and
    PREVIEW frames only the newest of a `slot` matters. END is the last frame of its prompt.

    Attributes:
        said: the message, in a backend's ids if there is a `translate`.
        translate: returns the message in the client's ids, given it and the client's prompt_id. It runs when the
            payload is read for the first time, because most progress is replaced by newer progress or read by nobody.
        legacy: the same picture for clients that declared nothing, once one of them has asked for it.
        bulk: the part of the message behind the payload, if that part is large.
        repeats: True if an earlier run sent the same, so that a client that gets one prompt's frames at a time must not
            get it.
        heard_at: time at which the backend's message came, in seconds of the monotonic clock; 0 for a frame that the
            gateway made, or that waits on purpose: for its prompt's turn, or for the frame that goes before it.
        if_told: True if only clients that were told of the prompt's start may get it. To all others the prompt was
            pending when it was deleted.
    """

    kind: Kind
    said: bytes
    prompt_id: str | None = None
    slot: str = ""
    binary: bool = False
    translate: Callable[[bytes, str], bytes] | None = None
    legacy: Frame | None = None
    bulk: Bulk | None = None
    repeats: bool = False
    if_told: bool = False
    heard_at: float = 0.0

    @property
    def payload(self) -> bytes:
        """Return the message for the client."""
        if self.translate is not None:
            self.said = self.translate(self.said, self.prompt_id or "")
            self.translate = None
        return self.said

    @property
    def size(self) -> int:
        """Return the bytes of the message."""
        return len(self.payload) + (self.bulk.size if self.bulk is not None else 0)

    @property
    def held(self) -> int:
        """Return the bytes that count as memory."""
        return len(self.payload) + (self.bulk.held if self.bulk is not None else 0)

    @property
    def shared(self) -> object:
        """Return the object that frames of the same content share."""
        return self.said if self.bulk is None else self.bulk


def parse(message: str | bytes) -> Event | None:
    """Read a text message; None if it is too large, or not of ComfyUI's form (see `read`)."""
    raw = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    return None if is_large(raw) else read(raw)


def read(raw: bytes) -> Event | None:
    """Read a text message that is not too large; None if it is not of ComfyUI's form.

    Of an event that the gateway knows each field is checked that it reads. What custom nodes send besides is passed on
    as it is.
    """
    try:
        value = json_codec.loads(raw)
    except json_codec.MalformedJson:
        return None
    if not isinstance(value, dict):
        return None
    type_, data = value.get("type"), value.get("data")
    if not isinstance(type_, str) or not isinstance(data, dict):
        return None
    prompt_id, fields = data.get("prompt_id"), _FIELDS.get(type_)
    if fields is not None:
        if prompt_id is not None and not is_id(prompt_id):
            return None
        for name, types in fields:
            if not isinstance(data.get(name), types):
                return None
        if type_ == "executing" and "node" not in data:
            return None
        if type_ == "execution_cached" and not all(isinstance(node, str) for node in data["nodes"]):
            return None
    return Event(type_, data, prompt_id if is_id(prompt_id) else None, raw)


def is_large(raw: bytes) -> bool:
    """Return True for a message that takes too long to be parsed in one piece."""
    return len(raw) > MAX_SMALL and (len(raw) > MAX_TEXT or json_codec.count_values(raw) > MAX_RESULT_VALUES)


def encode(type_: str, data: dict[str, Any]) -> bytes:
    """Return a text message in ComfyUI's form."""
    return json_codec.dumps({"type": type_, "data": data})


def encode_short(type_: str, data: dict[str, Any]) -> bytes:
    """Encode a short message with ComfyUI's blanks as well, because scripts look for ``"queue_remaining": 0``."""
    return json_codec.dumps_exact({"type": type_, "data": data})


def frame_of(
    event: Event, prompt_id: str, said: bytes, translate: Callable[[bytes, str], bytes] | None = None
) -> Frame:
    """Return the frame that passes `event` on for `prompt_id`, with the message and translation of a `Frame`."""
    if event.type in PROGRESS:
        kind, slot = Kind.PROGRESS, event.type
    elif event.ends_prompt:
        kind, slot = Kind.END, ""
    elif event.type == "execution_start":
        kind, slot = Kind.LIFECYCLE, START_SLOT
    elif event.type in LIFECYCLE:
        kind, slot = Kind.LIFECYCLE, ""
    else:
        kind, slot = Kind.OTHER, event.type
    return Frame(kind, said, prompt_id, slot, translate=translate)


def timestamp_of(data: dict[str, Any]) -> int | None:
    """Return the time in a message's data, in milliseconds since 1970; None if it has none (execution.py)."""
    timestamp = data.get("timestamp")
    is_time = isinstance(timestamp, int) and not isinstance(timestamp, bool) and 0 <= timestamp < END_OF_TIME
    return timestamp if is_time else None


def status_frame(queue_remaining: int, sid: str | None = None) -> Frame:
    """Return a ``status`` message; with `sid` the greeting of a new socket (server.py, websocket_handler)."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": queue_remaining}}}
    if sid is not None:
        data["sid"] = sid
    return Frame(Kind.STATUS if sid is None else Kind.LIFECYCLE, encode_short("status", data), None, "status")


def end_frame(prompt_id: str) -> Frame:
    """Return ``executing`` with node null: the prompt is over and its history entry can be read."""
    return Frame(Kind.END, encode_short("executing", {"node": None, "prompt_id": prompt_id}), prompt_id)
