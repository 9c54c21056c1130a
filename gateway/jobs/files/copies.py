"""Copies of files that the gateway put on other backends, because prompts there read them: the names of the copies."""

from __future__ import annotations

from gateway.comfy.file_refs import FileRef
from gateway.files.copy_names import copy_of, stored_copy_of
from gateway.files.values import Holder, Stored
from gateway.jobs.isolation.upload_folders import UploadPlaces


def copies_of(
    tenant: str, ref: FileRef, place: Holder | Stored, backend: str, places: UploadPlaces
) -> tuple[FileRef, ...]:
    """Return the names that copies of a tenant's file may have on a backend: of the file there, and of the stored one.

    Args:
        ref: the name that the tenant knows.
    """
    stored = place.stored if isinstance(place, Holder) else place
    own = () if stored is None else (stored_copy_of(places.of(tenant, ref, backend), stored),)
    return (copy_of(place.there, place.backend), *own) if isinstance(place, Holder) else own
