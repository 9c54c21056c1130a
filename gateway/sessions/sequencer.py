"""The order in which one socket is told about several prompts. Pure: frames in, frames out.

Clients written for one ComfyUI, which runs one prompt at a time, take any ``execution_success`` for their own. So a
socket hears of one prompt at a time: the others run all the same, their frames wait here (`Backlog`), and are told when
the prompt before has ended, those first that have ended themselves. While one that has ended is still untold, so is
``status``: a client that reads /queue at each ``status`` must not find that a prompt is over which, for all that it
was told, has not begun.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.comfy.backlog import Backlog
from gateway.comfy.events import START_SLOT, Frame, Kind

MAX_REMEMBERED_ENDS = 256


class Sequencer:
    """One socket's order of frames. With `interleave`, everything goes out as it happens.

    `waiting` are the prompts whose turn has not come, with what waits of each.
    """

    def __init__(self, *, interleave: bool = False) -> None:
        self._interleave = interleave
        self._current: str | None = None
        self.waiting: OrderedDict[str, Backlog] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._status: Frame | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes of all that waits."""
        return sum(backlog.bytes for backlog in self.waiting.values())

    def feed(self, frame: Frame) -> list[Frame]:
        """A frame came; what can be sent now."""
        prompt_id = frame.prompt_id
        if self._interleave:
            return [frame]
        if prompt_id is None:
            return self._pass(frame)
        if frame.slot == START_SLOT:
            # A client may send the id of a prompt again that it has deleted.
            self._ended.pop(prompt_id, None)
        if prompt_id in self._ended or frame.repeats:
            # A straggler of a prompt that was told to its end must not open it again. A second run of a prompt must not
            # move its progress backwards.
            return []
        if self._current is None and not frame.if_told:
            self._current = prompt_id
        if prompt_id != self._current and frame.if_told:
            # It was deleted before this socket was told that it began, so there is nothing to tell.
            self.waiting.pop(prompt_id, None)
            self._remember(prompt_id)
            return []
        if prompt_id != self._current:
            self.waiting.setdefault(prompt_id, Backlog()).add(frame)
            return []
        if frame.kind is not Kind.END:
            return [frame]
        self._end(prompt_id)
        return [frame, *self._next()]

    def results(self) -> list[Frame]:
        """The results that wait."""
        waiting = (frame for backlog in self.waiting.values() for frame in backlog.frames)
        return [frame for frame in waiting if frame.kind is Kind.RESULT]

    def thin(self) -> list[Frame]:
        """Leave out all progress and previews but the newest of what waits. Returns that."""
        return [frame for backlog in self.waiting.values() for frame in backlog.thin()]

    def clear(self) -> None:
        """Drop what waits."""
        self.waiting.clear()
        self._status = None

    def interleave(self) -> list[Frame]:
        """From now on everything goes out as it happens; first, what has waited."""
        self._interleave = True
        released = [frame for backlog in self.waiting.values() for frame in backlog.frames]
        if self._status is not None:
            released.append(self._status)
        self.waiting.clear()
        self._status = self._current = None
        return released

    def _pass(self, frame: Frame) -> list[Frame]:
        """A frame that is about no prompt; a ``status`` may have to wait, and then only the newest matters."""
        if frame.kind is Kind.STATUS and any(backlog.is_over for backlog in self.waiting.values()):
            self._status = frame
            return []
        return [frame]

    def _next(self) -> list[Frame]:
        """What waited: of prompts that have ended all, then ``status``, then of the one that began first."""
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
