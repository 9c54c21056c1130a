"""Texts in PNG files, written over at the same length. Pure (PNG, third edition: 5.3 chunk layout, 11.3.3 texts).

ComfyUI writes the prompt into a tEXt chunk before the picture's data (nodes.py, SaveImage).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A chunk's length and type before its data, and its checksum behind.
_HEAD, _CHECKSUM = 8, 4
_TEXT, _DATA, _END = b"tEXt", b"IDAT", b"IEND"


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes that stand in place of others from an offset on."""

    offset: int
    data: bytes

    def applied(self, chunk: bytes, start: int) -> bytes:
        """Return a piece of the file, which begins at `start`, with these bytes in it."""
        first, last = max(self.offset, start), min(self.offset + len(self.data), start + len(chunk))
        if first >= last:
            return chunk
        return chunk[: first - start] + self.data[first - self.offset : last - self.offset] + chunk[last - start :]


def holds_texts(head: bytes) -> bool:
    """Return True if a PNG file's texts are all in its first bytes, or if it is no PNG file."""
    offset = len(SIGNATURE)
    while head.startswith(SIGNATURE) and offset + _HEAD <= len(head):
        if head[offset + 4 : offset + _HEAD] in (_DATA, _END):
            return True
        offset += _HEAD + int.from_bytes(head[offset : offset + 4], "big") + _CHECKSUM
    return not head.startswith(SIGNATURE)


def text_patches(head: bytes, rewrite: Callable[[bytes], bytes]) -> list[Patch]:
    """Return the patches for a PNG file that change its JSON texts.

    Args:
        head: the file from its start on, as far as it is read. Chunks that do not end in it are left as they are.
        rewrite: returns a text, JSON in Latin-1 or UTF-8, as it is to be. If it gets longer, it is left as it is;
            if it gets shorter, blanks are put behind it, which JSON allows.
    """
    patches: list[Patch] = []
    if not head.startswith(SIGNATURE):
        return patches
    offset = len(SIGNATURE)
    while offset + _HEAD <= len(head):
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
