"""Ownership of files that a job reports: are they what another tenant's job wrote? Pure."""

from __future__ import annotations

from gateway.comfy.file_refs import FileRef
from gateway.files.identity import are_same
from gateway.files.index import FileIndex


def is_unproven(files: FileIndex, tenant: str, backend: str, ref: FileRef) -> bool:
    """Return True if a job said that it wrote a file, but the file was not looked at after the job."""
    held = files.held(tenant, backend, ref)
    return held is not None and held.etag is None


def is_theirs(files: FileIndex, tenant: str, backend: str, ref: FileRef, etag: str) -> bool:
    """Return True if the reported file is another tenant's existing file: the job named it but did not write it."""
    held = files.held(tenant, backend, ref)
    own = (held.etag, held.before) if held is not None else ()
    others = files.others(tenant, backend, ref).values()
    is_own, is_others = (any(each and are_same(etag, each) for each in known) for known in (own, others))
    return is_others and not is_own
