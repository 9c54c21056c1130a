"""The queue and the history (execution.py, PromptQueue): a heap on ``number``, one prompt running at a time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAXIMUM_HISTORY_SIZE = 10_000


@dataclass(slots=True, order=True)
class Item:
    """A queued prompt. What is `sensitive` is shown nowhere."""

    number: float
    prompt_id: str
    prompt: dict[str, Any] = field(compare=False)
    extra_data: dict[str, Any] = field(compare=False)
    outputs: list[str] = field(compare=False)
    sensitive: dict[str, Any] = field(compare=False, default_factory=dict)

    def shown(self) -> list[Any]:
        """Return the prompt as /queue shows it."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


class PromptQueue:
    """Pending prompts, the running one, and the history.

    Args:
        updated: called whenever the counts change.
    """

    def __init__(self, updated: Callable[[], None]) -> None:
        self._updated = updated
        self._heap: list[Item] = []
        self._not_empty = asyncio.Event()
        self.running: Item | None = None
        self.history: dict[str, dict[str, Any]] = {}
        self.interrupted = False

    @property
    def remaining(self) -> int:
        """Pending and running."""
        return len(self._heap) + (self.running is not None)

    @property
    def pending(self) -> list[Item]:
        """Return the pending prompts in the heap's order, as ComfyUI shows them."""
        return list(self._heap)

    def put(self, item: Item) -> None:
        """Queue a prompt."""
        heapq.heappush(self._heap, item)
        self._not_empty.set()
        self._updated()

    async def get(self) -> Item:
        """Wait for the next prompt and return it. It runs from now on."""
        while not self._heap:
            self._not_empty.clear()
            await self._not_empty.wait()
        self.running = heapq.heappop(self._heap)
        self.interrupted = False
        self._updated()
        return self.running

    def done(self, entry: dict[str, Any]) -> None:
        """End the running prompt, and put its entry into the history in the same step."""
        assert self.running is not None
        if len(self.history) > MAXIMUM_HISTORY_SIZE:
            self.history.pop(next(iter(self.history)))
        self.history[self.running.prompt_id] = entry
        self.running = None
        self._updated()

    def clear(self) -> None:
        """Forget all that is pending."""
        self._heap.clear()
        self._updated()

    def delete(self, prompt_id: str) -> bool:
        """Forget one that is pending; one that runs is left alone."""
        for place, item in enumerate(self._heap):
            if item.prompt_id == prompt_id:
                del self._heap[place]
                heapq.heapify(self._heap)
                self._updated()
                return True
        return False

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Interrupt the running prompt, if it is the named one. Return True if it was interrupted."""
        if self.running is None or (prompt_id is not None and self.running.prompt_id != prompt_id):
            return False
        self.interrupted = True
        return True

    def get_history(self, max_items: int | None, offset: int) -> dict[str, Any]:
        """Return a page of the history (execution.py, get_history)."""
        if offset < 0 and max_items is not None:
            offset = len(self.history) - max_items
        keys = list(self.history)[max(offset, 0) :]
        keys = keys if max_items is None else keys[: max(max_items, 1)]
        return {key: self.history[key] for key in keys}
