"""Names on backends that once meant a file which object storage alone has now."""

from __future__ import annotations

from gateway.comfy.file_refs import FileRef

# Names that are told apart. Past it every name counts, so that none is taken for what it is not.
MAX_LEFT = 200_000


class LeftNames:
    """Set of (tenant, backend, name there). If it would grow past its maximum, it holds every name."""

    def __init__(self, maximum: int = MAX_LEFT) -> None:
        self._maximum = maximum
        self._names: set[tuple[str, str, FileRef]] = set()
        self._holds_all = False

    def add(self, name: tuple[str, str, FileRef]) -> None:
        """Add a name."""
        if self._holds_all:
            return
        self._names.add(name)
        if len(self._names) > self._maximum:
            self._names.clear()
            self._holds_all = True

    def __contains__(self, name: object) -> bool:
        """Return True if a name may mean another file than it did."""
        return self._holds_all or name in self._names
