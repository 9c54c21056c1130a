"""Split a JSON object into its members, without parsing them. Pure.

A parser holds the interpreter until it has the whole document. Members are parsed one at a time, with pauses between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gateway.comfy import json_codec
from gateway.comfy.json_stream import Unreadable

# Bytes that are looked at in one piece.
WINDOW = 2**16
MAX_NAME = 2**14
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[^ \t\n\r,\]}\[{\":]*+")
# Up to the next bracket: all between, and whole texts.
_UP_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_INSIDE_TEXT = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class Member(NamedTuple):
    """A member of an object: its name, and where its value begins and ends in the document."""

    name: str
    start: int
    end: int


def members(document: bytes, rest: Callable[[], None], window: int = WINDOW) -> Iterator[Member]:
    """Yield the members of an object, those with the same name as well. Values are not checked to be JSON.

    `rest` is called now and then.

    Raises:
        Unreadable: it is no object, or ends too early, or something follows it.
    """
    reader = _Reader(document, rest, window)
    reader.take(b"{")
    if not reader.is_next(b"}"):
        while True:
            name = reader.name()
            reader.take(b":")
            yield Member(name, *reader.value())
            if not reader.is_next(b","):
                break
        reader.take(b"}")
    reader.skip_space()
    if reader.at < len(document):
        raise Unreadable("something follows the object")


class _Reader:
    def __init__(self, document: bytes, rest: Callable[[], None], window: int) -> None:
        self._document = document
        self._rest = rest
        self._window = window
        self.at = len(_BOM) if document.startswith(_BOM) else 0

    def take(self, mark: bytes) -> None:
        if not self.is_next(mark):
            raise Unreadable(f"{mark.decode()} is missing" if self.at < len(self._document) else "it ends too early")

    def is_next(self, mark: bytes) -> bool:
        is_next = self._peek() == mark
        self.at += is_next
        return is_next

    def name(self) -> str:
        self.skip_space()
        start, end = self.value()
        if end - start > MAX_NAME:
            raise Unreadable(f"a name has more than {MAX_NAME} bytes")
        try:
            name = json_codec.loads(self._document[start:end])
        except json_codec.MalformedJson as error:
            raise Unreadable("a name is no JSON") from error
        if not isinstance(name, str):
            raise Unreadable("a name is no text")
        return name

    def value(self) -> tuple[int, int]:
        """Pass over a value; return where it begins and ends."""
        first = self._peek()
        start = self.at
        if first == b'"':
            self._skip_text()
        elif first in (b"[", b"{"):
            self._skip_container()
        else:
            self._skip_while(_SCALAR)
        return start, self.at

    def skip_space(self) -> None:
        self._skip_while(_SPACE)

    def _peek(self) -> bytes:
        self.skip_space()
        return self._document[self.at : self.at + 1]

    def _skip_container(self) -> None:
        depth = 0
        while True:
            self._skip_while(_UP_TO_BRACKET)
            mark = self._document[self.at : self.at + 1]
            if mark == b'"':
                # If a text is longer than what is looked at in one piece, pass over it in pieces.
                self._skip_text()
                continue
            if not mark:
                raise Unreadable("it ends too early")
            self.at += 1
            depth += 1 if mark in b"[{" else -1
            if depth == 0:
                return

    def _skip_text(self) -> None:
        self.at += 1
        self._skip_while(_INSIDE_TEXT)
        if self._document[self.at : self.at + 1] != b'"':
            raise Unreadable("it ends too early")
        self.at += 1

    def _skip_while(self, pattern: re.Pattern[bytes]) -> None:
        """Go on while a pattern fits, a window at a time."""
        while True:
            end = min(self.at + self._window, len(self._document))
            found = pattern.match(self._document, self.at, end)
            assert found is not None
            is_stuck = found.end() == self.at
            self.at = found.end()
            # A window may end within an escape.
            if is_stuck or (self.at < end and self._document[self.at : self.at + 1] != b"\\"):
                return
            self._rest()
