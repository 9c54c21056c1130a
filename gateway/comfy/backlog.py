"""Frames that wait: all lifecycle events and results, enough progress for a bar to move, the newest preview. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.comfy.events import TERMINAL_SLOT, Frame, Kind

# Frames of a kind and slot that wait at most, and bytes of its progress. Lifecycle events and results are all kept.
MAX_FRAMES = {Kind.PROGRESS: 64, Kind.PREVIEW: 1, Kind.OTHER: 64}
MAX_PROGRESS_BYTES = 256 * 1024
# Slots up to which each type of event that nodes make up has one of its own. All further types share one.
MAX_SLOTS = 64


@dataclass(slots=True)
class _Slot:
    """The waiting frames of one kind and slot: the numbers of the kept ones, out of all that were `seen`.

    Of progress, each `stride`-th frame is kept, and the newest, so that a bar moves evenly.
    """

    seen: int = 0
    stride: int = 1
    numbers: list[int] = field(default_factory=list)
    bytes: int = 0


class Backlog:
    """The frames of one prompt, in order, that can't be sent yet. Up to `whole` of them nothing is left out.

    `is_over`: the prompt's terminal event is among the frames, so the prompt has left the queue.
    """

    def __init__(self, whole: int = 0) -> None:
        self._whole = whole
        self._slots: dict[tuple[Kind, str], _Slot] = {}
        self.frames: list[Frame] = []
        self.is_over = False
        self.bytes = 0

    def add(self, frame: Frame) -> None:
        """Add a frame. If too many of its kind wait, leave some of them out, but never the newest."""
        size = frame.held
        self.frames.append(frame)
        self.bytes += size
        self.is_over = self.is_over or frame.kind is Kind.END or frame.slot == TERMINAL_SLOT
        if frame.kind in MAX_FRAMES:
            key = self._key(frame)
            slot = self._slots.setdefault(key, _Slot())
            slot.numbers.append(slot.seen)
            slot.seen += 1
            slot.bytes += size
            if len(slot.numbers) > 1 and len(self.frames) > self._whole:
                self._make_room(key, slot)

    def _key(self, frame: Frame) -> tuple[Kind, str]:
        key = (frame.kind, frame.slot)
        if frame.kind is not Kind.OTHER or key in self._slots or len(self._slots) < MAX_SLOTS:
            return key
        return Kind.OTHER, ""

    def thin(self) -> list[Frame]:
        """Leave out all progress, and all previews, but the newest. Return the frames that were left out."""
        slots = [(key, slot) for key, slot in self._slots.items() if key[0] is not Kind.OTHER]
        return [frame for key, slot in slots for frame in self._keep(key, slot, slot.numbers[-1:])]

    def _make_room(self, key: tuple[Kind, str], slot: _Slot) -> None:
        maximum = MAX_FRAMES[key[0]]
        if key[0] is not Kind.PROGRESS:
            self._keep(key, slot, slot.numbers[-maximum:])
            return
        self._keep(key, slot, self._sample(slot))
        while len(slot.numbers) > maximum or (len(slot.numbers) > 1 and slot.bytes > MAX_PROGRESS_BYTES):
            slot.stride *= 2
            self._keep(key, slot, self._sample(slot) if slot.stride < slot.seen else slot.numbers[-1:])

    @staticmethod
    def _sample(slot: _Slot) -> list[int]:
        return [number for number in slot.numbers[:-1] if number % slot.stride == 0] + slot.numbers[-1:]

    def _keep(self, key: tuple[Kind, str], slot: _Slot, numbers: list[int]) -> list[Frame]:
        """Leave out the frames of a slot but for these. Return the frames that were left out."""
        if len(numbers) == len(slot.numbers):
            return []
        own, kept, dropped, frames = iter(slot.numbers), set(numbers), [], []
        for frame in self.frames:
            if frame.kind is key[0] and self._key(frame) == key and next(own) not in kept:
                dropped.append(frame)
            else:
                frames.append(frame)
        size = sum(frame.held for frame in dropped)
        slot.numbers, self.frames = numbers, frames
        slot.bytes -= size
        self.bytes -= size
        return dropped

    @property
    def has_ended(self) -> bool:
        """Return True if the newest frame is the prompt's last one."""
        return bool(self.frames) and self.frames[-1].kind is Kind.END
