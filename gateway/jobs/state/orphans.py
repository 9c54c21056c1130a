"""Orphans: prompts that a backend may still have of jobs that were cancelled or are elsewhere, and must not run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

MAX_ORPHANS = 100_000


class Orphans:
    """(backend, upstream_id) of every copy, the oldest forgotten past a limit.

    One may still be on its way: its POST /prompt has no outcome yet, so that it is not there proves nothing. The ids
    of prompts that are over, copies or not, are remembered up to the same limit: no backend may use one again.
    """

    def __init__(self) -> None:
        self._on_its_way: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._ids: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()
        self._ended: dict[str, None] = {}

    def add(self, backend: str, upstream_id: str, *, on_its_way: bool = False) -> None:
        """A copy on this backend must not run, should it turn up."""
        if (backend, upstream_id) in self._on_its_way:
            return
        self._on_its_way[backend, upstream_id] = on_its_way
        self._ids[upstream_id] = self._ids.get(upstream_id, 0) + 1
        if len(self._on_its_way) > MAX_ORPHANS:
            self.remove(*next(iter(self._on_its_way)))

    def remove(self, backend: str, upstream_id: str) -> None:
        """Forget a copy that is dealt with."""
        if self.has(backend, upstream_id):
            self.take_back(backend, upstream_id)
            self.ended(upstream_id)

    def ended(self, upstream_id: str) -> None:
        """Remember the id of a prompt that is over."""
        self._ended[upstream_id] = None
        if len(self._ended) > MAX_ORPHANS:
            del self._ended[next(iter(self._ended))]

    def has_ended(self, upstream_id: str) -> bool:
        """Return True if a prompt of that id is over."""
        return upstream_id in self._ended

    def take_back(self, backend: str, upstream_id: str) -> None:
        """Forget a copy that is wanted again."""
        if (backend, upstream_id) not in self._on_its_way:
            return
        del self._on_its_way[backend, upstream_id]
        self._told.discard((backend, upstream_id))
        self._ids[upstream_id] -= 1
        if not self._ids[upstream_id]:
            del self._ids[upstream_id]

    def told(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """These are being stopped."""
        self._told.update((backend, upstream_id) for upstream_id in upstream_ids if self.has(backend, upstream_id))

    def is_told(self, backend: str, upstream_id: str) -> bool:
        """Whether it is being stopped, so that it can't be wanted again."""
        return (backend, upstream_id) in self._told

    def arrived(self, backend: str, upstream_id: str) -> None:
        """Its POST /prompt has an outcome."""
        if (backend, upstream_id) in self._on_its_way:
            self._on_its_way[backend, upstream_id] = False

    def absent(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """These are not there, and will not be unless they are still on their way."""
        for upstream_id in upstream_ids:
            if not self._on_its_way.get((backend, upstream_id)):
                self.remove(backend, upstream_id)

    def has(self, backend: str, upstream_id: str) -> bool:
        """Whether this backend may hold a copy of that name."""
        return (backend, upstream_id) in self._on_its_way

    def has_id(self, upstream_id: str) -> bool:
        """Whether any backend may."""
        return upstream_id in self._ids

    def on(self, backend: str) -> list[str]:
        """The copies on a backend."""
        return [upstream_id for backend_name, upstream_id in self._on_its_way if backend_name == backend]

    def among(self, backend: str, upstream_ids: Collection[str]) -> list[str]:
        """Those of these that are copies on this backend."""
        return [upstream_id for upstream_id in upstream_ids if (backend, upstream_id) in self._on_its_way]
