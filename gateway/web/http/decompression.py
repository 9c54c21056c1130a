"""Decompression of bodies piece by piece, so that a small body that unpacks to much is never held whole.

aiohttp would unpack bodies itself, in pieces as large as the maximum body. If that fails, it ends the connection with a
traceback in the log. ComfyUI leaves it to aiohttp, so the gateway takes the codings of a stock one: gzip and deflate.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

PIECE = 2**18
# The codings of RFC 9110, section 8.4.1, that need no library beside Python's own; as Accept-Encoding.
TAKEN = "gzip, deflate"


class UnknownCoding(ValueError):
    """Refusal of a body in an unknown coding; the text names that coding and those that are taken."""


class BadPacking(ValueError):
    """Refusal of a body that can't be unpacked; the text gives the reason."""


class Decompressor:
    """Decompressor of one body.

    Raises:
        UnknownCoding: `coding`, a Content-Encoding, is neither gzip nor deflate.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding.strip().lower().removeprefix("x-")
        if self._coding not in ("gzip", "deflate"):
            raise UnknownCoding(f"Content-Encoding {coding[:40]!r} is not taken; send {TAKEN}, or nothing")
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16) if self._coding == "gzip" else None

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """Unpack a piece of the body, and yield the result in pieces of `PIECE` bytes at most.

        Raises:
            BadPacking: the body can't be unpacked.
        """
        if self._inflate is None:
            # The coding deflate is zlib's format, though some clients send it bare (RFC 9110, section 8.4.1.2).
            bits = zlib.MAX_WBITS if packed[:1] and packed[0] & 0x0F == 8 else -zlib.MAX_WBITS
            self._inflate = zlib.decompressobj(bits)
        while packed:
            if self._inflate.eof:
                raise BadPacking(f"there is more after the end of the {self._coding} data")
            try:
                piece = self._inflate.decompress(packed, PIECE)
            except zlib.error as error:
                raise BadPacking(f"it is not {self._coding}: {error}") from error
            if piece:
                yield piece
            packed = self._inflate.unconsumed_tail or self._inflate.unused_data

    def end(self) -> None:
        """Note the end of the body.

        Raises:
            BadPacking: the body ends too early.
        """
        if self._inflate is None or not self._inflate.eof:
            raise BadPacking(f"the {self._coding} data end too early")
