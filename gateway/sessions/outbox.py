"""Outbox of one socket: frames that wait to be written, bounded; some are left out for a slow reader. Pure.

Beyond half of the limit only the newest preview, then the newest progress and status, are kept; beyond all of it none.
Lifecycle events and results are never left out: a reader so slow that these alone pass the limit is beyond help, and
its socket is closed. What waits on disk does not count (`gateway.store.spool`).
"""

from __future__ import annotations

from collections import deque

from gateway.comfy.events import Frame, Kind
from gateway.sessions.buffers import LARGE, Shared

_DROPPED_FIRST = (frozenset({Kind.PREVIEW}), frozenset({Kind.PROGRESS, Kind.STATUS, Kind.OTHER}))
# Between the end of one prompt and what waits of the next.
PAUSE_SECONDS = 0.02
# If more frames wait, there is no pause, because prompts end faster than a socket with pauses could be told.
MAX_PAUSED = 256


def pause_after(waiting: int) -> float:
    """Return the seconds to wait after a prompt's last frame, if so many wait, on a socket told of prompts in turn.

    A client may unpack a binary frame in a later turn of its loop than the text after it. If the next prompt is told in
    the same breath, it takes one prompt's picture for the other's.
    """
    return PAUSE_SECONDS if 0 < waiting <= MAX_PAUSED else 0.0


class Outbox:
    """A queue of frames.

    Args:
        limit: bytes in memory; past half of it frames are left out, past all of it `overflowing` is true.
        shared: where large ones are counted, of which `large_bytes` are here.
    """

    def __init__(self, limit: int, shared: Shared) -> None:
        self._limit = limit
        self._shared = shared
        self._frames: deque[Frame] = deque()
        self.bytes = 0
        self.large_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def overflowing(self) -> bool:
        """Whether not even leaving out was enough. A single frame may be as large as it likes."""
        return self.bytes > self._limit and len(self._frames) > 1

    def put(self, frame: Frame) -> list[Frame]:
        """Add a frame. Returns what was left out to make room."""
        self._frames.append(frame)
        size = frame.held if frame.bulk is not None else len(frame.payload)
        self.bytes += size
        if size >= LARGE:
            self.large_bytes += size
            self._shared.add(frame.shared, size)
        dropped: list[Frame] = []
        for kinds in _DROPPED_FIRST:
            if self.bytes > self._limit // 2:
                dropped += self._leave_out(kinds, keep_newest=True)
        for kinds in _DROPPED_FIRST:
            if self.overflowing:
                dropped += self._leave_out(kinds, keep_newest=False)
        return dropped

    def take(self) -> Frame | None:
        """The next frame to write."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._forget(frame)
        return frame

    def thin(self) -> list[Frame]:
        """Leave out all but the newest of what may be left out. Returns that."""
        return [frame for kinds in _DROPPED_FIRST for frame in self._leave_out(kinds, keep_newest=True)]

    def clear(self) -> None:
        """Leave out all."""
        while self.take() is not None:
            pass

    def results(self) -> list[Frame]:
        """The results that wait."""
        return [frame for frame in self._frames if frame.kind is Kind.RESULT]

    def _forget(self, frame: Frame) -> None:
        size = frame.held if frame.bulk is not None else len(frame.payload)
        self.bytes -= size
        if size >= LARGE:
            self.large_bytes -= size
            self._shared.remove(frame.shared, size)

    def _leave_out(self, kinds: frozenset[Kind], *, keep_newest: bool) -> list[Frame]:
        seen: set[tuple[Kind, str, str | None]] = set()
        kept: deque[Frame] = deque()
        dropped: list[Frame] = []
        for frame in reversed(self._frames):
            key = (frame.kind, frame.slot, frame.prompt_id)
            if frame.kind in kinds and (key in seen or not keep_newest):
                dropped.append(frame)
                self._forget(frame)
                continue
            seen.add(key)
            kept.appendleft(frame)
        self._frames = kept
        return dropped
