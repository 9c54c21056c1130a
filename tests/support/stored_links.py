"""Files in object storage, as the index knows them."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.artifacts.links import Links, OwnLinks
from gateway.artifacts.object_store import ObjectStore
from gateway.comfy.file_refs import FileRef
from gateway.files.index import FileIndex, Holder, Stored
from gateway.settings.storage import StorageSettings


def output(name: str, folder: str = "") -> FileRef:
    """An output."""
    return FileRef("output", folder, name)


def indexed(files: Mapping[str, Mapping[str, Stored | None]]) -> FileIndex:
    """An index of each tenant's outputs by their names; None for a file that is not stored.

    A file whose name begins with ``lost`` is on no backend any more.
    """
    index = FileIndex()
    for tenant, own in files.items():
        for name, stored in own.items():
            if not name.startswith("lost"):
                index.restore(tenant, output(name), Holder("b1", output(name, tenant), '"1-1"'))
            if stored is not None:
                assert index.restore_stored(tenant, output(name), stored)
    return index


def links(**settings: object) -> Links:
    """Links to files in memory, which the gateway signs."""
    read = StorageSettings.model_validate({"url": "memory:", "links": "signed", **settings})
    return Links(read, ObjectStore.of(read), OwnLinks(bytes(32)))
