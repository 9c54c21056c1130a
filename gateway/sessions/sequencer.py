"""The order in which one socket gets the frames of several prompts. Pure: frames in, frames out.

Clients written for one ComfyUI, which runs one prompt at a time, take any ``execution_success`` for their own. So a
socket gets the frames of one prompt at a time. Other prompts run meanwhile, and their frames wait here (`Backlog`)
until the prompt before has ended. Then prompts that have ended go first. ``status`` waits while an ended prompt waits:
a client that reads /queue at each ``status`` must not see a prompt as over that, by its events, has not begun.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.comfy.backlog import Backlog
from gateway.comfy.events import START_SLOT, Frame, Kind

MAX_REMEMBERED_ENDS = 256


class Sequencer:
    """Sequencer of one socket's frames. With `interleave`, all frames go out as they come.

    `waiting` are the prompts whose turn has not come, each with its waiting frames.
    """

    def __init__(self, *, interleave: bool = False) -> None:
        self._interleave = interleave
        self._current: str | None = None
        self.waiting: OrderedDict[str, Backlog] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._status: Frame | None = None

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes of all waiting frames."""
        return sum(backlog.bytes for backlog in self.waiting.values())

    def feed(self, frame: Frame) -> list[Frame]:
        """Take a frame, and return the frames that can be sent now."""
        prompt_id = frame.prompt_id
        if self._interleave:
            return [frame]
        if prompt_id is None:
            return self._pass(frame)
        if frame.slot == START_SLOT:
            # If a prompt starts, forget its earlier end, because a client may reuse the id of a deleted prompt.
            self._ended.pop(prompt_id, None)
        if prompt_id in self._ended or frame.repeats:
            # Drop a late frame of an ended prompt, because it must not open the prompt again. Drop a repeated frame,
            # because a second run must not move the prompt's progress backwards.
            return []
        if self._current is None and not frame.if_told:
            self._current = prompt_id
        if prompt_id != self._current and frame.if_told:
            # If the prompt was deleted before this socket heard of its start, drop its frames.
            self.waiting.pop(prompt_id, None)
            self._remember(prompt_id)
            return []
        if prompt_id != self._current:
            frame.heard_at = 0.0
            self.waiting.setdefault(prompt_id, Backlog()).add(frame)
            return []
        if frame.kind is not Kind.END:
            return [frame]
        self._end(prompt_id)
        return [frame, *self._next()]

    def results(self) -> list[Frame]:
        """Return the waiting results."""
        waiting = (frame for backlog in self.waiting.values() for frame in backlog.frames)
        return [frame for frame in waiting if frame.kind is Kind.RESULT]

    def thin(self) -> list[Frame]:
        """Drop all waiting progress and previews but the newest. Return the dropped frames."""
        return [frame for backlog in self.waiting.values() for frame in backlog.thin()]

    def clear(self) -> None:
        """Drop all waiting frames."""
        self.waiting.clear()
        self._status = None

    def interleave(self) -> list[Frame]:
        """Let all frames go out as they come from now on. Return the frames that have waited."""
        self._interleave = True
        released = [frame for backlog in self.waiting.values() for frame in backlog.frames]
        if self._status is not None:
            released.append(self._status)
        self.waiting.clear()
        self._status = self._current = None
        return released

    def _pass(self, frame: Frame) -> list[Frame]:
        """Return a frame without a prompt. If an ended prompt waits, keep a ``status``; only the newest is kept."""
        if frame.kind is Kind.STATUS and any(backlog.is_over for backlog in self.waiting.values()):
            self._status = frame
            return []
        return [frame]

    def _next(self) -> list[Frame]:
        """Return waiting frames: all of ended prompts, then ``status``, then those of the prompt that began first."""
        released: list[Frame] = []
        for prompt_id in [prompt_id for prompt_id, backlog in self.waiting.items() if backlog.has_ended]:
            released += self.waiting.pop(prompt_id).frames
            self._end(prompt_id)
        if self._status is not None:
            released.append(self._status)
            self._status = None
        if self.waiting:
            self._current, backlog = self.waiting.popitem(last=False)
            released += backlog.frames
        return released

    def _end(self, prompt_id: str) -> None:
        self._current = None
        self._remember(prompt_id)

    def _remember(self, prompt_id: str) -> None:
        self._ended[prompt_id] = None
        if len(self._ended) > MAX_REMEMBERED_ENDS:
            self._ended.popitem(last=False)
