"""Tenants with uploads under a name or in a folder, in any spelling that a file system may take for it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gateway.comfy.file_refs import FileRef
from gateway.files.placements import spelled_alike


class UploadOwners:
    """The owners of uploads by names, and by the folders that the uploads lie in or below (no filename)."""

    def __init__(self) -> None:
        self._owners: dict[FileRef, Counter[str]] = {}

    def enter(self, tenant: str, ref: FileRef) -> None:
        """Note that a tenant has an upload."""
        for name in _name_and_folders(ref):
            self._owners.setdefault(name, Counter())[tenant] += 1

    def leave(self, tenant: str, ref: FileRef) -> None:
        """Note that a tenant has an upload no more."""
        for name in _name_and_folders(ref):
            owners = self._owners[name]
            owners[tenant] -= 1
            if not owners[tenant]:
                del owners[tenant]
            if not owners:
                del self._owners[name]

    def is_others(self, tenant: str, ref: FileRef) -> bool:
        """Return True if another tenant has an upload of this name or, without a filename, in or below this folder."""
        owners = self._owners.get(spelled_alike(ref))
        return owners is not None and (len(owners) > 1 or tenant not in owners)


def _name_and_folders(ref: FileRef) -> Iterator[FileRef]:
    """Yield a file's name and the folders that it lies in, as a file system may take them for others."""
    alike = spelled_alike(ref)
    yield alike
    folder = alike.subfolder
    while folder:
        yield FileRef(alike.kind, folder, "")
        folder = folder.rpartition("/")[0]
