"""Read parts of a large JSON document as it comes, and pass over the rest.

A ComfyUI repeats whole prompts in /queue and /history. What the gateway needs of them is small, so the rest is neither
kept nor parsed: no piece of this work takes longer than a piece of the document, whatever is in it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from gateway.comfy import json_codec

# Bytes that are looked at before others run.
STEP = 2**14
MAX_KEY = 2**10
_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[^\s,\]}\[{\":]*+")
# What changes the depth, or begins a text.
_STRUCTURE = re.compile(rb'["\[\]{}]')
_INSIDE_TEXT = re.compile(rb'(?:[^"\\]+|\\.)*+', re.DOTALL)


class Unreadable(ValueError):
    """A document is not of the form that it should have; the text says why."""


class TooLarge(Unreadable):
    """A document is larger than the gateway reads.

    Attributes:
        size: bytes that were seen of it; there may be more.
    """

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class JsonStream:
    """A JSON document, read from its beginning to its end.

    Each method begins where the one before has ended. In skipped parts only brackets and texts are looked at.

    Args:
        pieces: the document, in pieces of any size.
        maximum: bytes that it may have.

    Attributes:
        size: bytes that came of it so far.
        kept: bytes of all values that were read so far.
        encode: the encoder that writes again all values that were read.
    """

    def __init__(self, pieces: AsyncIterator[bytes], maximum: int) -> None:
        self._pieces = pieces
        self._maximum = maximum
        self._data = self._waiting = b""
        self._at = self._taken = 0
        self.size = 0
        self.encode: Callable[[Any], bytes] = json_codec.dumps
        self.kept = 0
        self._kept: list[bytes] | None = None
        self._joined = 0
        self._room = 0
        self._must_fit = True

    async def members(self) -> AsyncIterator[str]:
        """Yield the keys of an object. The caller takes or passes over the value of each.

        Raises:
            Unreadable: it is no object.
        """
        await self._take(b"{")
        if await self._is_next(b"}"):
            return
        while True:
            key = await self.value(MAX_KEY, 1)
            if not isinstance(key, str):
                raise Unreadable("a key is no text")
            await self._take(b":")
            yield key
            if not await self._is_next(b","):
                break
        await self._take(b"}")

    async def items(self) -> AsyncIterator[int]:
        """Yield the places in an array. The caller takes or passes over the value of each.

        Raises:
            Unreadable: it is no array.
        """
        await self._take(b"[")
        if await self._is_next(b"]"):
            return
        place = 0
        while True:
            yield place
            place += 1
            if not await self._is_next(b","):
                break
        await self._take(b"]")

    async def value(self, maximum: int, max_values: int) -> Any:
        """Parse the next value, of `maximum` bytes and about `max_values` values.

        Raises:
            TooLarge: it has more.
            Unreadable: it is not JSON.
        """
        self._kept, self._joined, self._room = [], 0, maximum
        try:
            await self.skip()
            raw = b"".join(self._kept)
        finally:
            self._kept = None
        if json_codec.encoder_for(raw) is json_codec.dumps_exact:
            self.encode = json_codec.dumps_exact
        return parse(raw, max_values)

    async def raw(self, maximum: int) -> tuple[list[bytes] | None, int]:
        """Return the next value as written, in pieces, and its bytes; None for one of more than `maximum` bytes."""
        kept: list[bytes] = []
        self._kept, self._joined, self._room, self._must_fit = kept, 0, maximum, False
        try:
            await self.skip()
            self._join_kept()
        finally:
            self._kept, self._must_fit = None, True
        size = maximum - self._room
        return (kept if size <= maximum else None), size

    async def skip(self) -> None:
        """Pass over the next value."""
        first = await self._next()
        if first == b'"':
            await self._skip_text()
        elif first in (b"[", b"{"):
            await self._skip_container()
        else:
            await self._skip_while(_SCALAR)

    async def kind(self) -> bytes:
        """Return the first byte of the next value: ``{``, ``[``, ``"`` or another; nothing at the end."""
        return await self._next()

    async def end(self) -> None:
        """Make sure that nothing follows.

        Raises:
            Unreadable: something does.
        """
        if await self._next():
            raise Unreadable("something follows the document")

    # -- bytes ---------------------------------------------------------------------------------------------------

    async def _skip_container(self) -> None:
        depth = 0
        while True:
            found = _STRUCTURE.search(self._data, self._at)
            if found is None:
                self._pass(len(self._data))
                await self._need()
                continue
            mark = found[0]
            if mark == b'"':
                self._pass(found.start())
                await self._skip_text()
                continue
            self._pass(found.end())
            depth += 1 if mark in b"[{" else -1
            if depth == 0:
                return

    async def _skip_text(self) -> None:
        self._pass(self._at + 1)
        while True:
            found = _INSIDE_TEXT.match(self._data, self._at)
            assert found is not None
            self._pass(found.end())
            if self._at < len(self._data) and self._data[self._at : self._at + 1] == b'"':
                self._pass(self._at + 1)
                return
            # The end of what is there, or half of an escape.
            await self._need()

    async def _skip_while(self, pattern: re.Pattern[bytes]) -> None:
        while True:
            found = pattern.match(self._data, self._at)
            assert found is not None
            self._pass(found.end())
            if self._at < len(self._data) or not await self._fill():
                return

    def _join_kept(self) -> None:
        """Make one piece of those that one step brought: a hundred thousand of them take long to go through."""
        if self._kept is not None and len(self._kept) > self._joined + 1:
            self._kept[self._joined :] = [b"".join(self._kept[self._joined :])]
            self._joined += 1

    def _pass(self, end: int) -> None:
        """Go on to `end`; keep the bytes before it if a value is being read."""
        if self._kept is not None and end > self._at:
            self._room -= end - self._at
            if self._room >= 0:
                self._kept.append(self._data[self._at : end])
                self.kept += end - self._at
            elif self._must_fit:
                raise TooLarge("a value is too large", self.size)
            else:
                self._kept.clear()
        self._at = end

    async def _next(self) -> bytes:
        """Return the next byte that is no space; nothing at the end."""
        kept, self._kept = self._kept, None
        await self._skip_while(_SPACE)
        self._kept = kept
        return self._data[self._at : self._at + 1]

    async def _take(self, mark: bytes) -> None:
        if not await self._is_next(mark):
            raise Unreadable(f"{mark.decode()} is missing")

    async def _is_next(self, mark: bytes) -> bool:
        is_next = await self._next() == mark
        self._at += is_next
        return is_next

    async def _need(self) -> None:
        if not await self._fill():
            raise Unreadable("it ends too early")

    async def _fill(self) -> bool:
        """Get the next piece, and free the passed ones. Return False at the end."""
        if self._taken >= len(self._waiting):
            async for piece in self._pieces:
                self._waiting, self._taken = piece, 0
                self.size += len(piece)
                if self.size > self._maximum:
                    raise TooLarge(f"it has more than {self._maximum} bytes", self.size)
                break
            else:
                return False
        # Others run between two steps, even if all pieces are there.
        await asyncio.sleep(0)
        self._join_kept()
        self._data, self._at = self._data[self._at :] + self._waiting[self._taken : self._taken + STEP], 0
        self._taken += STEP
        return True


def parse(raw: bytes, max_values: int) -> Any:
    """Parse JSON of about `max_values` values at most, counted by their separators.

    Raises:
        TooLarge: it has more.
        Unreadable: it is not JSON.
    """
    if len(raw) > max_values and raw.count(b",") + raw.count(b"[") + raw.count(b"{") > max_values:
        raise TooLarge(f"it has more than {max_values} values", len(raw))
    try:
        return json_codec.loads(raw)
    except json_codec.MalformedJson as error:
        raise Unreadable("it is not JSON") from error
