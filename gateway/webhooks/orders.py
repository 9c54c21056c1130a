"""Orders that the outbox keeps, so that no bound and no age needs a look at all events or all tenants. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable

_SLACK = 64


class Tally:
    """Counts by name. The largest one is known at once, however many names there are."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        # The names with each count; a group without names is not kept.
        self._groups: dict[int, dict[str, None]] = {}
        self.total = 0
        self.top = 0

    def __getitem__(self, name: str) -> int:
        return self._counts.get(name, 0)

    def add(self, name: str) -> None:
        """Count one more."""
        self._move(name, self[name], self[name] + 1)
        self.total += 1
        self.top = max(self.top, self._counts[name])

    def remove(self, name: str) -> None:
        """Count one less. A name that counts nothing is forgotten."""
        count = self._counts[name]
        self._move(name, count, count - 1)
        self.total -= 1
        if self.top not in self._groups:
            self.top = count - 1

    def largest(self) -> str:
        """Return the name that counts most; among several, the first one that came to count so much.

        Raises:
            KeyError: nothing is counted.
        """
        return next(iter(self._groups[self.top]))

    def _move(self, name: str, before: int, after: int) -> None:
        if before:
            group = self._groups[before]
            del group[name]
            if not group:
                del self._groups[before]
        if after:
            self._counts[name] = after
            self._groups.setdefault(after, {})[name] = None
        else:
            del self._counts[name]


class ByAge:
    """Ids by their time, the oldest first.

    Args:
        is_kept: returns True while an id counts. Others are left out, and cleared away when they are many.
    """

    def __init__(self, is_kept: Callable[[str], bool]) -> None:
        self._is_kept = is_kept
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, id_: str, at: float, count: int) -> None:
        """Add an id that was not there. `count` is the number of those that are kept."""
        heapq.heappush(self._heap, (at, id_))
        if len(self._heap) > 2 * count + _SLACK:
            self._heap = [each for each in self._heap if self._is_kept(each[1])]
            heapq.heapify(self._heap)

    def take(self, until: float, maximum: int) -> list[str]:
        """Take out the ids whose time is `until` or earlier, at most `maximum`."""
        taken: list[str] = []
        while self._heap and len(taken) < maximum and self._heap[0][0] <= until:
            id_ = heapq.heappop(self._heap)[1]
            if self._is_kept(id_):
                taken.append(id_)
        return taken
