"""Copies of pictures without embedded text: workflows, prompts, EXIF, XMP, comments. Pixels and colours stay. Pure.

ComfyUI writes the workflow into what it saves: PNG text chunks, a private chunk of animated PNG, EXIF of WebP. So all
that is not known to be needed for the picture goes, not only what is known to hold text.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Literal

Stripper = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The picture, its colours, its density and its animation (PNG, third edition). Names of profiles stay with them.
_PNG_CHUNKS = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD pHYs acTL fcTL fdAT".split()
)
_MAX_PNG_CHUNK = 2**31 - 1
_WEBP_CHUNKS = frozenset((b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ICCP"))
_VP8X_TEXT = 0b00001100
# Readers of RIFF skip unknown chunks; this name is the usual one for padding.
_PADDING = b"JUNK"
_MAX_PIECE = 64 * 1024
_ZEROS = bytes(_MAX_PIECE)
_MAX_PARTS = 100_000
# Pieces that are taken from a file before other tasks have a turn. One chunk of a hostile file has 65,000.
_PIECES_AT_ONCE = 500
_SOI, _EOI, _SOS, _COM, _APP0, _APP1, _APP2, _APP14, _APP15 = 0xD8, 0xD9, 0xDA, 0xFE, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
# In the data of a scan these follow 0xFF: a stuffed zero, restarts, and fill bytes. Anything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class NotStrippable(ValueError):
    """A file that is not what its name says, is damaged, or breaks off."""


def stripper(filename: str) -> Stripper | None:
    """Return the function that strips files of this name, or None if there is none: such a file must not be shared.

    The function may raise NotStrippable after it has yielded bytes; these are then not to be used.
    """
    _, dot, suffix = filename.rpartition(".")
    strippers = {".png": _strip_png, ".jpg": _strip_jpeg, ".jpeg": _strip_jpeg, ".webp": _strip_webp}
    return strippers.get(f"{dot}{suffix.lower()}")


class _Source:
    """Bytes of a stream, taken in pieces of a known size."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._held = b""
        # The first byte of what is held that was not taken yet.
        self._at = 0
        self._parts = self._pieces = 0

    def count_part(self) -> None:
        """Count a chunk or segment of the file, because a hostile one has millions of tiny ones.

        Raises:
            NotStrippable: there are too many.
        """
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise NotStrippable("a file in too many parts")

    async def some(self, size: int) -> bytes:
        """Return the next bytes, at most so many.

        Raises:
            NotStrippable: the stream has ended.
        """
        while self._at >= len(self._held):
            chunk = await anext(self._chunks, None)
            if chunk is None:
                raise NotStrippable("the file breaks off")
            self._held, self._at = bytes(chunk), 0
        self._pieces += 1
        if self._pieces % _PIECES_AT_ONCE == 0:
            await asyncio.sleep(0)
        taken = self._held[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def give_back(self, rest: bytes) -> None:
        """Have these bytes, the last that were taken, come next again."""
        if self._at >= len(rest):
            self._at -= len(rest)
        else:
            self._held, self._at = rest + self._held[self._at :], 0

    async def pieces(self, size: int) -> AsyncIterator[bytes]:
        """Yield so many bytes.

        Raises:
            NotStrippable: the stream ends before.
        """
        while size:
            piece = await self.some(min(size, _MAX_PIECE))
            size -= len(piece)
            yield piece

    async def take(self, size: int) -> bytes:
        """Return so many bytes. Only for sizes that are small.

        Raises:
            NotStrippable: the stream ends before.
        """
        return b"".join([piece async for piece in self.pieces(size)])

    async def skip(self, size: int) -> None:
        """Leave so many bytes out.

        Raises:
            NotStrippable: the stream ends before.
        """
        async for _ in self.pieces(size):
            pass


async def _strip_png(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    source = _Source(chunks)
    if await source.take(8) != _PNG_SIGNATURE:
        raise NotStrippable("not a PNG file")
    yield _PNG_SIGNATURE
    name = b""
    while name != b"IEND":
        source.count_part()
        is_first = not name
        head = await source.take(8)
        size, name = int.from_bytes(head[:4]), head[4:]
        if size > _MAX_PNG_CHUNK or not (name.isalpha() and name.isascii()) or is_first != (name == b"IHDR"):
            raise NotStrippable("a malformed chunk in a PNG file")
        if name in _PNG_CHUNKS:
            yield head
            async for piece in source.pieces(size + 4):
                yield piece
        elif name[:1].isupper():
            raise NotStrippable("an unknown critical chunk in a PNG file")
        else:
            await source.skip(size + 4)


async def _strip_webp(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Overwrite what is not needed with zeros, because the first bytes tell the size of the file, which must stay."""
    source = _Source(chunks)
    head = await source.take(12)
    size = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or head[8:] != b"WEBP" or size < 12 or size % 2:
        raise NotStrippable("not a WebP file")
    yield head
    async for piece in _riff_chunks(source, size - 4):
        yield piece


async def _riff_chunks(source: _Source, left: int, *, is_in_frame: bool = False) -> AsyncIterator[bytes]:
    """Yield the chunks of `left` bytes of a WebP file, or of a frame in it, without text."""
    while left:
        source.count_part()
        head = await source.take(8) if left >= 8 else b""
        name, size = head[:4], int.from_bytes(head[4:], "little")
        padded = size + size % 2
        left -= 8 + padded
        if left < 0 or not head:
            raise NotStrippable("a malformed chunk in a WebP file")
        if name in _WEBP_CHUNKS:
            yield head
            async for piece in source.pieces(padded):
                yield piece
        elif name == b"VP8X" and size >= 10 and not is_in_frame:
            flags = await source.take(1)
            yield head + bytes((flags[0] & ~_VP8X_TEXT,))
            async for piece in source.pieces(padded - 1):
                yield piece
        elif name == b"ANMF" and size >= 16 and size % 2 == 0 and not is_in_frame:
            yield head + await source.take(16)
            async for piece in _riff_chunks(source, size - 16, is_in_frame=True):
                yield piece
        elif name in (b"VP8X", b"ANMF"):
            raise NotStrippable("a malformed chunk in a WebP file")
        else:
            yield _PADDING + head[4:]
            async for piece in source.pieces(padded):
                yield _ZEROS[: len(piece)]


async def _strip_jpeg(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    source = _Source(chunks)
    if await source.take(2) != bytes((0xFF, _SOI)):
        raise NotStrippable("not a JPEG file")
    yield bytes((0xFF, _SOI))
    while (marker := await _next_marker(source)) != _EOI:
        source.count_part()
        if marker < 0xC0 or 0xD0 <= marker <= _SOI:
            raise NotStrippable("a malformed segment in a JPEG file")
        length = await source.take(2)
        size = int.from_bytes(length) - 2
        if size < 0:
            raise NotStrippable("a malformed segment in a JPEG file")
        body = await source.take(size)
        if (kept := _kept_body(marker, body)) is not None:
            yield bytes((0xFF, marker)) + (len(kept) + 2).to_bytes(2) + kept
        if marker == _SOS:
            async for piece in _scan(source):
                yield piece
    yield bytes((0xFF, _EOI))


async def _next_marker(source: _Source) -> int:
    """Return the next marker of a JPEG file. Any number of fill bytes may stand before it."""
    if await source.take(1) != b"\xff":
        raise NotStrippable("a malformed segment in a JPEG file")
    while (byte := await source.take(1)) == b"\xff":
        pass
    return byte[0]


def _kept_body(marker: int, body: bytes) -> bytes | None:
    """Return the content of a segment to write, or None if the segment goes."""
    if marker == _APP1 and (orientation := _orientation(body)) > 1:
        # Without the orientation, viewers would show the picture turned.
        entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + orientation.to_bytes(4, "little")
        return b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + bytes(4)
    is_needed = (
        (marker == _APP0 and body.startswith(b"JFIF\x00"))
        or (marker == _APP2 and body.startswith(b"ICC_PROFILE\x00"))
        or (marker == _APP14 and body.startswith(b"Adobe"))
        or not (_APP0 <= marker <= _APP15 or marker == _COM)
    )
    return body if is_needed else None


def _orientation(body: bytes) -> int:
    """Return the orientation of EXIF: 1 as it is, up to 8; 0 if there is none."""
    if not body.startswith(b"Exif\x00\x00") or body[6:8] not in (b"II", b"MM"):
        return 0
    order: Literal["little", "big"] = "little" if body[6:8] == b"II" else "big"
    tiff = body[6:]

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)

    first = number(4, 4)
    for entry in range(first + 2, min(first + 2 + 12 * number(first, 2), len(tiff) - 11), 12):
        if (number(entry, 2), number(entry + 2, 2)) == (0x0112, 3):
            found = number(entry + 8, 2)
            return found if 1 <= found <= 8 else 0
    return 0


async def _scan(source: _Source) -> AsyncIterator[bytes]:
    """Yield the data of a scan, up to the next marker.

    Raises:
        NotStrippable: the stream ends before.
    """
    held = b""
    while True:
        piece = held + await source.some(_MAX_PIECE)
        if (match := _MARKER.search(piece)) is not None:
            source.give_back(piece[match.start() :])
            yield piece[: match.start()]
            return
        # If the last byte may begin a marker, keep it for the next piece.
        held = piece[-1:] if piece.endswith(b"\xff") else b""
        yield piece[: len(piece) - len(held)]
