"""Copies that must not run: what a backend may still hold of a job that was cancelled, or is elsewhere by now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

MOST = 100_000


class Copies:
    """(backend, upstream_id) of every copy, the oldest forgotten past a limit."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._ids: dict[str, int] = {}

    def add(self, backend: str, upstream_id: str) -> None:
        """A copy on this backend must not run, should it turn up."""
        if (backend, upstream_id) in self._known:
            return
        self._known[backend, upstream_id] = None
        self._ids[upstream_id] = self._ids.get(upstream_id, 0) + 1
        if len(self._known) > MOST:
            self.remove(*next(iter(self._known)))

    def remove(self, backend: str, upstream_id: str) -> None:
        """It is dealt with, or wanted again."""
        if (backend, upstream_id) not in self._known:
            return
        del self._known[backend, upstream_id]
        self._ids[upstream_id] -= 1
        if not self._ids[upstream_id]:
            del self._ids[upstream_id]

    def remove_all(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """These are dealt with."""
        for upstream_id in upstream_ids:
            self.remove(backend, upstream_id)

    def has(self, backend: str, upstream_id: str) -> bool:
        """Whether this backend may hold a copy of that name."""
        return (backend, upstream_id) in self._known

    def has_id(self, upstream_id: str) -> bool:
        """Whether any backend may."""
        return upstream_id in self._ids

    def on(self, backend: str) -> list[str]:
        """The copies on a backend."""
        return [upstream_id for place, upstream_id in self._known if place == backend]
