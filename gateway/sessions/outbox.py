"""Outbox of one socket: frames that wait to be written, bounded. For a slow reader some are dropped. Pure.

Past half of the limit only the newest preview, then the newest progress and status, are kept; past all of it none.
Lifecycle events and results are never dropped. If these alone pass the limit, the reader is too slow, and its socket
is closed. Frames on disk don't count (`gateway.store.spool`).
"""

from __future__ import annotations

from collections import deque

from gateway.comfy.events import Frame, Kind
from gateway.sessions.buffer_bounds import LARGE, Shared

_DROPPED_FIRST = (frozenset({Kind.PREVIEW}), frozenset({Kind.PROGRESS, Kind.STATUS, Kind.OTHER}))
# Pause between the end of one prompt and the waiting frames of the next.
PAUSE_SECONDS = 0.02
# If more frames wait, there is no pause, because prompts end faster than a socket with pauses could be told.
MAX_PAUSED = 256


def pause_after(waiting: int) -> float:
    """Return the pause in seconds after a prompt's last frame, by the number of waiting frames.

    A client may unpack a binary frame in a later turn of its loop than the text after it. Without a pause it may take
    one prompt's picture for the next prompt's.
    """
    return PAUSE_SECONDS if 0 < waiting <= MAX_PAUSED else 0.0


class Outbox:
    """Queue of frames.

    Args:
        limit: maximum bytes in memory. Past half of it frames are dropped, past all of it `overflowing` is True.
        shared: the tenant's count of large frames, of which `large_bytes` are here.
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
        """Return True if the frames pass the limit even after dropping. A single frame may have any size."""
        return self.bytes > self._limit and len(self._frames) > 1

    def put(self, frame: Frame) -> list[Frame]:
        """Add a frame. Return the frames that were dropped to make room."""
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
        """Return the next frame to write; None if there is none."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._forget(frame)
        return frame

    def thin(self) -> list[Frame]:
        """Drop all but the newest frame of each kind that may be dropped. Return the dropped frames."""
        return [frame for kinds in _DROPPED_FIRST for frame in self._leave_out(kinds, keep_newest=True)]

    def clear(self) -> None:
        """Drop all frames."""
        while self.take() is not None:
            pass

    def results(self) -> list[Frame]:
        """Return the waiting results."""
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
