"""The order in which one socket is told about several prompts. Pure: frames in, frames out.

Clients written for one ComfyUI, which runs one prompt at a time, take any ``execution_success`` for their own. So a
socket hears of one prompt at a time: the others run all the same, what happens to them waits here, and is told when
the prompt before has ended. Of what waits, every lifecycle event is kept and only the newest progress and preview.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.comfy.events import Frame, Kind

_ONLY_NEWEST = frozenset({Kind.PROGRESS, Kind.PREVIEW})
MAX_OTHER = 64
MAX_REMEMBERED_ENDS = 256


class Sequencer:
    """One socket's order of frames. With `interleave`, everything goes out as it happens."""

    def __init__(self, *, interleave: bool = False) -> None:
        self._interleave = interleave
        self._current: str | None = None
        self._waiting: OrderedDict[str, list[Frame]] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.waiting_bytes = 0

    def feed(self, frame: Frame) -> list[Frame]:
        """A frame came; what can be sent now."""
        prompt_id = frame.prompt_id
        if prompt_id is None or self._interleave:
            return [frame]
        if prompt_id in self._ended:
            # A straggler of a prompt that was told to its end: it must not open it again.
            return []
        if self._current is None:
            self._current = prompt_id
        if prompt_id != self._current:
            self._keep(prompt_id, frame)
            return []
        if frame.kind is not Kind.END:
            return [frame]
        self._end(prompt_id)
        return [frame, *self._next()]

    def interleave(self) -> list[Frame]:
        """From now on everything goes out as it happens; first, what has waited."""
        self._interleave = True
        released = [frame for frames in self._waiting.values() for frame in frames]
        self._waiting.clear()
        self.waiting_bytes = 0
        self._current = None
        return released

    def _next(self) -> list[Frame]:
        """What waited for the next prompt, and for those after it that have ended as well."""
        released: list[Frame] = []
        while self._current is None and self._waiting:
            prompt_id, frames = self._waiting.popitem(last=False)
            released += frames
            self.waiting_bytes -= sum(len(frame.payload) for frame in frames)
            if frames[-1].kind is Kind.END:
                self._end(prompt_id)
            else:
                self._current = prompt_id
        return released

    def _end(self, prompt_id: str) -> None:
        self._current = None
        self._ended[prompt_id] = None
        if len(self._ended) > MAX_REMEMBERED_ENDS:
            self._ended.popitem(last=False)

    def _keep(self, prompt_id: str, frame: Frame) -> None:
        frames = self._waiting.setdefault(prompt_id, [])
        if frame.kind in _ONLY_NEWEST:
            self._drop_one(frames, frame, most=1)
        elif frame.kind is Kind.OTHER:
            self._drop_one(frames, frame, most=MAX_OTHER)
        frames.append(frame)
        self.waiting_bytes += len(frame.payload)

    def _drop_one(self, frames: list[Frame], frame: Frame, most: int) -> None:
        """Make room for `frame`: of its kind and slot no more than `most` wait."""
        same = [place for place, old in enumerate(frames) if old.kind is frame.kind and old.slot == frame.slot]
        if len(same) >= most:
            self.waiting_bytes -= len(frames.pop(same[0]).payload)
