"""Orphans: prompts that a backend may still have, but must not run, because their jobs are cancelled or elsewhere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

MAX_ORPHANS = 100_000


class Orphans:
    """Set of orphans by (backend, upstream_id). Past a limit the oldest is forgotten.

    An orphan may be on its way, because its POST /prompt has no outcome yet. Then its absence proves nothing. The ids
    of ended prompts are kept up to the same limit, orphans or not, because no backend may use an id again.
    """

    def __init__(self) -> None:
        self._orphans: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._ids: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()
        self._ended: dict[str, None] = {}

    def add(self, backend: str, upstream_id: str, *, on_its_way: bool = False) -> None:
        """Add an orphan: if it turns up on this backend, it must not run."""
        if (backend, upstream_id) in self._orphans:
            return
        self._orphans[backend, upstream_id] = on_its_way
        self._ids[upstream_id] = self._ids.get(upstream_id, 0) + 1
        if len(self._orphans) > MAX_ORPHANS:
            self.remove(*next(iter(self._orphans)))

    def remove(self, backend: str, upstream_id: str) -> None:
        """Forget an orphan that no longer exists, and remember its id as ended."""
        if self.has(backend, upstream_id):
            self.take_back(backend, upstream_id)
            self.ended(upstream_id)

    def ended(self, upstream_id: str) -> None:
        """Remember the id of a prompt that ended."""
        self._ended[upstream_id] = None
        if len(self._ended) > MAX_ORPHANS:
            del self._ended[next(iter(self._ended))]

    def has_ended(self, upstream_id: str) -> bool:
        """Return True if a prompt with this id ended."""
        return upstream_id in self._ended

    def take_back(self, backend: str, upstream_id: str) -> None:
        """Forget an orphan, because a job takes its prompt back."""
        if (backend, upstream_id) not in self._orphans:
            return
        del self._orphans[backend, upstream_id]
        self._told.discard((backend, upstream_id))
        self._ids[upstream_id] -= 1
        if not self._ids[upstream_id]:
            del self._ids[upstream_id]

    def told(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """Note that the gateway is cancelling orphans on a backend."""
        self._told.update((backend, upstream_id) for upstream_id in upstream_ids if self.has(backend, upstream_id))

    def is_told(self, backend: str, upstream_id: str) -> bool:
        """Return True if the gateway is cancelling an orphan, so that no job can take it back."""
        return (backend, upstream_id) in self._told

    def arrived(self, backend: str, upstream_id: str) -> None:
        """Note that an orphan's POST /prompt has an outcome."""
        if (backend, upstream_id) in self._orphans:
            self._orphans[backend, upstream_id] = False

    def absent(self, backend: str, upstream_ids: Iterable[str]) -> None:
        """Forget prompts that a backend does not have, except orphans that are still on their way."""
        for upstream_id in upstream_ids:
            if not self._orphans.get((backend, upstream_id)):
                self.remove(backend, upstream_id)

    def has(self, backend: str, upstream_id: str) -> bool:
        """Return True if a backend may have an orphan with this id."""
        return (backend, upstream_id) in self._orphans

    def has_id(self, upstream_id: str) -> bool:
        """Return True if any backend may have an orphan with this id."""
        return upstream_id in self._ids

    def on(self, backend: str) -> list[str]:
        """Return the ids of the orphans on a backend."""
        return [upstream_id for backend_name, upstream_id in self._orphans if backend_name == backend]

    def among(self, backend: str, upstream_ids: Collection[str]) -> list[str]:
        """Return the given ids that are orphans on a backend."""
        return [upstream_id for upstream_id in upstream_ids if (backend, upstream_id) in self._orphans]
