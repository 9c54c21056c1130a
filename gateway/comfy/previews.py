"""Binary WebSocket frames: a big-endian event type, then the contents of that type.

1 preview: image type (1 JPEG, 2 PNG) and the image; 3 text; 4 preview with metadata: length of a JSON object, the
object, the image (protocol.py BinaryEventTypes, server.py send_image and send_image_with_metadata).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec

# Bytes of a preview's metadata; a ComfyUI writes some 200.
MAX_METADATA = 2**16
PREVIEW = 1
_UNENCODED_PREVIEW = 2
TEXT = 3
PREVIEW_WITH_METADATA = 4

_U32 = struct.Struct(">I")
_TWO_U32 = struct.Struct(">II")
JPEG, PNG = "image/jpeg", "image/png"
_NUMBERS = {JPEG: 1, PNG: 2}
_BY_NUMBER = {number: name for name, number in _NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class Head:
    """Head of a binary frame, before the picture.

    Attributes:
        type: the event type; None for a frame that is too short to have one.
        metadata: the JSON object of a frame of type 4; empty for others.
        image_type: the type of the picture, JPEG if a frame of type 4 does not say it; None if unknown.
        end: the start of the picture; 0 if it has none.
    """

    type: int | None
    metadata: dict[str, Any]
    image_type: str | None
    end: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview; `metadata` says which node of which prompt it shows."""

    metadata: dict[str, Any]
    image_type: str
    image: bytes


def event_type(frame: bytes) -> int | None:
    """Return the type of a binary frame; None for one that is too short to have one."""
    return int(_U32.unpack_from(frame)[0]) if len(frame) >= _U32.size else None


def head_of(frame: bytes) -> Head | None:
    """Read the head before the picture; None for a frame of type 4 that is not well-formed."""
    type_ = event_type(frame)
    if type_ == PREVIEW_WITH_METADATA:
        found = _metadata_of(frame)
        if found is None:
            return None
        metadata, end = found
        image_type = metadata.get("image_type")
        return Head(type_, metadata, image_type if image_type in (JPEG, PNG) else JPEG, end)
    if type_ in (PREVIEW, _UNENCODED_PREVIEW) and len(frame) >= _TWO_U32.size:
        return Head(type_, {}, _BY_NUMBER.get(int(_U32.unpack_from(frame, 4)[0])), _TWO_U32.size)
    return Head(type_, {}, None, 0)


def parse_with_metadata(frame: bytes) -> Preview | None:
    """Read a frame of type 4; None if it is not well-formed."""
    found = _metadata_of(frame)
    if found is None:
        return None
    metadata, end = found
    image_type = metadata.get("image_type")
    if not isinstance(image_type, str) or image_type not in _NUMBERS:
        image_type = "image/jpeg"
    return Preview(metadata, image_type, frame[end:])


def _span_of(frame: bytes) -> int | None:
    """Return where the metadata of a frame of type 4 end; None if it is no such frame."""
    if len(frame) < _TWO_U32.size:
        return None
    type_, length = _TWO_U32.unpack_from(frame)
    end: int = _TWO_U32.size + length
    is_whole = length <= MAX_METADATA and end <= len(frame)
    return end if type_ == PREVIEW_WITH_METADATA and is_whole else None


def _metadata_of(frame: bytes) -> tuple[dict[str, Any], int] | None:
    end = _span_of(frame)
    if end is None:
        return None
    try:
        metadata = json_codec.loads(frame[_TWO_U32.size : end])
    except json_codec.MalformedJson:
        return None
    return (metadata, end) if isinstance(metadata, dict) else None


def replace(frame: bytes, old: bytes, new: bytes) -> bytes:
    """Return a frame with `new` for `old` in its text or metadata; an image is left alone."""
    found = _span_of(frame)
    if found is None:
        return frame if event_type(frame) in (PREVIEW, _UNENCODED_PREVIEW) else frame.replace(old, new)
    metadata = frame[_TWO_U32.size : found].replace(old, new)
    return b"".join((_TWO_U32.pack(PREVIEW_WITH_METADATA, len(metadata)), metadata, memoryview(frame)[found:]))


def encode_with_metadata(preview: Preview) -> bytes:
    """Return a frame of type 4."""
    metadata = json_codec.dumps_exact({**preview.metadata, "image_type": preview.image_type})
    return _TWO_U32.pack(PREVIEW_WITH_METADATA, len(metadata)) + metadata + preview.image


def encode_legacy(preview: Preview) -> bytes:
    """Return a frame of type 1."""
    return _TWO_U32.pack(PREVIEW, _NUMBERS.get(preview.image_type, 1)) + preview.image


def to_legacy(frame: bytes) -> bytes | None:
    """Return a frame of type 4 as one of type 1; None if it is not well-formed."""
    found = _metadata_of(frame)
    if found is None:
        return None
    metadata, end = found
    number = _NUMBERS.get(str(metadata.get("image_type")), 1)
    return b"".join((_TWO_U32.pack(PREVIEW, number), memoryview(frame)[end:]))
