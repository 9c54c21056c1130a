"""Which file is where, and what each tenant calls it.

Two backends both write ComfyUI_00001_.png. The first one that a tenant sees keeps its name; one that collides gets
``~<backend>`` before its suffix, for that tenant, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.comfy.outputs import FileRef


@dataclass(frozen=True, slots=True)
class Holder:
    """Where a file is: the backend, and the file's name there (its folder is the same)."""

    backend: str
    filename: str


class FileIndex:
    """The files that each tenant may see. Pure bookkeeping: what to remember for ever is returned, not written."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, FileRef], Holder] = {}
        self._names: dict[tuple[str, str, FileRef], str] = {}
        self._first: dict[FileRef, Holder] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def claim(self, tenant: str, backend: str, ref: FileRef) -> tuple[str, bool]:
        """The tenant's name for a file that `backend` calls `ref`, and whether that is news."""
        known = self._names.get((tenant, backend, ref))
        if known is not None:
            return known, False
        name = ref.filename
        attempt = 0
        while (tenant, visible := FileRef(ref.kind, ref.subfolder, name)) in self._holders:
            attempt += 1
            name = marked(ref.filename, backend if attempt == 1 else f"{backend}-{attempt}")
        self._put(tenant, visible, Holder(backend, ref.filename))
        return name, True

    def restore(self, tenant: str, visible: FileRef, holder: Holder) -> None:
        """Put back what an earlier run remembered."""
        self._put(tenant, visible, holder)

    def _put(self, tenant: str, visible: FileRef, holder: Holder) -> None:
        self._holders[tenant, visible] = holder
        self._first.setdefault(visible, holder)
        self._names[tenant, holder.backend, FileRef(visible.kind, visible.subfolder, holder.filename)] = (
            visible.filename
        )

    def find(self, tenant: str, visible: FileRef) -> Holder | None:
        """Where a tenant's file is; None for one it never saw."""
        return self._holders.get((tenant, visible))

    def find_any(self, visible: FileRef) -> Holder | None:
        """Where a file of any tenant is: for an admin, who sees all. The oldest one, where several have the name."""
        return self._first.get(visible)


def marked(filename: str, mark: str) -> str:
    """`filename` with ``~mark`` before its suffix: a name beside one that is taken."""
    stem, dot, suffix = filename.rpartition(".")
    return f"{stem}~{mark}.{suffix}" if dot and stem else f"{filename}~{mark}"
