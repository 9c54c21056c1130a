"""Frames that wait: every lifecycle event and result is kept, of progress and previews only the newest. Pure."""

from __future__ import annotations

from gateway.comfy.events import TERMINAL_SLOT, Frame, Kind

_ONLY_NEWEST = frozenset({Kind.PROGRESS, Kind.PREVIEW})
MAX_OTHER = 64


class Backlog:
    """The frames of one prompt, in order, that can't be told yet. Up to `whole` of them nothing is left out.

    `is_over`: its terminal event is among them, so that it has left the queue.
    """

    def __init__(self, whole: int = 0) -> None:
        self._whole = whole
        self.frames: list[Frame] = []
        self.is_over = False
        self.bytes = 0

    def add(self, frame: Frame) -> None:
        """One more."""
        if len(self.frames) < self._whole:
            pass
        elif frame.kind in _ONLY_NEWEST:
            self._drop_one(frame, most=1)
        elif frame.kind is Kind.OTHER:
            self._drop_one(frame, most=MAX_OTHER)
        self.frames.append(frame)
        self.is_over = self.is_over or frame.kind is Kind.END or frame.slot == TERMINAL_SLOT
        self.bytes += frame.held

    def _drop_one(self, frame: Frame, most: int) -> None:
        """Make room for `frame`: of its kind and slot no more than `most` wait."""
        same = [place for place, old in enumerate(self.frames) if old.kind is frame.kind and old.slot == frame.slot]
        if len(same) >= most:
            self.bytes -= self.frames.pop(same[0]).held

    @property
    def has_ended(self) -> bool:
        """Whether the prompt's last frame is among them."""
        return bool(self.frames) and self.frames[-1].kind is Kind.END
