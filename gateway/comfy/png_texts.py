"""Texts in PNG files, written over at the same length. Pure (PNG, third edition: 5.3 chunk layout, 11.3.3 texts).

ComfyUI writes the prompt into a tEXt chunk before the picture's data (nodes.py, SaveImage).
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A chunk's length and type before its data, and its checksum behind.
_HEAD, _CHECKSUM = 8, 4
_TEXT, _DATA, _END = b"tEXt", b"IDAT", b"IEND"
# Chunks that are read in one step.
CHUNKS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes that stand in place of others from an offset on."""

    offset: int
    data: bytes


def patched_part(patches: Sequence[Patch], part: bytes, start: int) -> bytes:
    """Return a part of the file, which begins at `start`, with the patches in it. They are in the file's order."""
    end, number = start + len(part), bisect_right(patches, start, key=_end_of)
    if number == len(patches) or patches[number].offset >= end:
        return part
    told = bytearray(part)
    while number < len(patches) and (patch := patches[number]).offset < end:
        first, last = max(patch.offset, start), min(_end_of(patch), end)
        told[first - start : last - start] = patch.data[first - patch.offset : last - patch.offset]
        number += 1
    return bytes(told)


def _end_of(patch: Patch) -> int:
    return patch.offset + len(patch.data)


def holds_texts(head: bytes) -> bool:
    """Return True if a PNG file's texts are all in its first bytes, or if it is no PNG file."""
    offset = len(SIGNATURE)
    while head.startswith(SIGNATURE) and offset + _HEAD <= len(head):
        if head[offset + 4 : offset + _HEAD] in (_DATA, _END):
            return True
        offset += _HEAD + int.from_bytes(head[offset : offset + 4], "big") + _CHECKSUM
    return not head.startswith(SIGNATURE)


def text_patches(head: bytes, rewrite: Callable[[bytes], bytes]) -> Generator[None, None, list[Patch]]:
    """Return the patches for a PNG file that change its JSON texts, in the file's order.

    Find them in short steps, because a client may have ComfyUI write thousands of texts (extra_pnginfo).

    Args:
        head: the file from its start on, as far as it is read. Chunks that do not end in it are left as they are.
        rewrite: returns a text, JSON in Latin-1 or UTF-8, as it is to be. If it gets longer, it is left as it is;
            if it gets shorter, blanks are put behind it, which JSON allows.
    """
    patches: list[Patch] = []
    if not head.startswith(SIGNATURE):
        return patches
    offset, count = len(SIGNATURE), 0
    while offset + _HEAD <= len(head):
        if (count := count + 1) % CHUNKS_AT_ONCE == 0:
            yield
        size, kind = int.from_bytes(head[offset : offset + 4], "big"), head[offset + 4 : offset + _HEAD]
        start, end = offset + _HEAD, offset + _HEAD + size
        if kind in (_DATA, _END) or end + _CHECKSUM > len(head):
            break
        if kind == _TEXT:
            keyword, separator, text = head[start:end].partition(b"\0")
            told = rewrite(text)
            if separator and told != text and len(told) <= len(text):
                data = keyword + separator + told.ljust(len(text))
                checksum = zlib.crc32(kind + data).to_bytes(_CHECKSUM, "big")
                patches.append(Patch(start, data + checksum))
        offset = end + _CHECKSUM
    return patches
