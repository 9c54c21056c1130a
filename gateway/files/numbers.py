"""Numbers in the names of a tenant's files, as ComfyUI counts them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.comfy.file_refs import FileRef
from gateway.comfy.saved_names import Saved, saved


class Numbers:
    """Counts of the names that tenants see.

    Args:
        is_taken: returns True if a tenant has a file of a name.
    """

    def __init__(self, is_taken: Callable[[str, FileRef], bool]) -> None:
        self._is_taken = is_taken
        # The highest number of the outputs with one folder and prefix, and how many of these there are.
        self._counts: dict[tuple[str, FileRef, str], tuple[int, int]] = {}
        # The number that a tenant sees in the names of files that have one number in one folder of a backend.
        self._numbers: dict[tuple[str, str, FileRef, str, int], tuple[int, int]] = {}

    def number_for(self, tenant: str, backend: str, there: FileRef, folder: FileRef, parts: Saved) -> int:
        """Return the number that a tenant is to see in a file's name: one more than the highest so far.

        Files that have one number in one folder of a backend, like a film and its first picture, have one number here.

        Args:
            there: the file on its backend.
            folder: the folder that the tenant sees, as a file without a name.
            parts: the parts of its name as the tenant sees it, with the backend's number.
        """
        known = self._numbers.get((tenant, backend, *_numbered(there, parts)))
        return known[0] if known is not None else self.next_number(tenant, folder, parts)

    def next_number(self, tenant: str, folder: FileRef, parts: Saved) -> int:
        """Return one more than the highest number of a tenant's files with a folder and prefix.

        The first file keeps its number, because ComfyUI counts on over the pictures of a batch even if each has a
        prefix of its own (``%batch_num%``). An upload may have the name that this makes.
        """
        known = self._counts.get((tenant, folder, parts.prefix))
        number = known[0] + 1 if known is not None else parts.number
        while self._is_taken(tenant, replace(folder, filename=replace(parts, number=number).filename)):
            number += 1
        return number

    def count_name(self, tenant: str, visible: FileRef, step: int) -> None:
        """Take a name into the counts (1), or out of them (-1). A count goes with the last name that it counts."""
        if (parts := _parts_of(visible)) is None:
            return
        key = (tenant, FileRef(visible.kind, visible.subfolder, ""), parts.prefix)
        highest, count = self._counts.get(key, (0, 0))
        self._counts[key] = (max(highest, parts.number) if step > 0 else highest, count + step)
        if count + step <= 0:
            del self._counts[key]

    def count_file(self, tenant: str, visible: FileRef, backend: str, there: FileRef, step: int) -> None:
        """Take a backend's file, which the tenant sees as `visible`, into the counts (1), or out of them (-1)."""
        parts = _parts_of(visible)
        saved_there = saved(there.filename) if there.subfolder != visible.subfolder else None
        if parts is None or saved_there is None:
            return
        key = (tenant, backend, *_numbered(there, saved_there))
        number, count = self._numbers.get(key, (parts.number, 0))
        self._numbers[key] = (parts.number if step > 0 else number, count + step)
        if count + step <= 0:
            del self._numbers[key]


def _parts_of(visible: FileRef) -> Saved | None:
    return saved(visible.filename) if visible.kind == "output" else None


def _numbered(there: FileRef, parts: Saved) -> tuple[FileRef, str, int]:
    """Return the key that files with one number in one folder of a backend share: folder, prefix and number."""
    saved_there = saved(there.filename) or parts
    return replace(there, filename=""), saved_there.prefix, saved_there.number
