"""What a POST /prompt comes to: an answer, or that nothing can be taken now."""

from __future__ import annotations

from dataclasses import dataclass


class Overloaded(Exception):
    """A prompt can't be accepted now; the text says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a POST /prompt."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
