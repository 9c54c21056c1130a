"""The name that a tenant is to see for a file that its job reports."""

from __future__ import annotations

from functools import partial

from gateway.comfy.file_refs import FileRef
from gateway.files import identity
from gateway.files.index import FileIndex, Origin
from gateway.jobs.isolation.visible_names import is_steered, visible_name
from gateway.store.protocol import FileRemoval


def wanted_name(
    files: FileIndex, tenant: str, backend: str, ref: FileRef, origin: Origin
) -> tuple[FileRef | None, str, list[FileRemoval]]:
    """Return the name that a tenant is to see for a file; None for the backend's own name, as far as it is free.

    If the job wrote over an earlier file, forget that one there. Return also the earlier file's ETag, because the job
    may show that file again, and the changes for the journal.
    """
    held, before = files.held(tenant, backend, ref), identity.UNTOLD
    wanted = visible_name(ref, partial(files.numbers.number_for, tenant, backend, ref)) if is_steered(ref) else None
    if origin is not Origin.WROTE or held is None or not held.is_known:
        return wanted, before, []
    if held.stored is not None and held.etag != identity.GONE:
        before = held.etag or identity.UNTOLD
    if wanted is None and held.stored is None:
        return wanted, before, []
    # If the folder was emptied and counts from 1 again, forget the earlier job's file of this name. If object storage
    # has it, the file keeps its name.
    following = visible_name(ref, partial(files.numbers.next_number, tenant)) if wanted is not None else None
    gone = files.forget(tenant, backend, ref)
    assert gone is not None
    # If another file of this number has its new name already, give this file the same number.
    wanted = following if wanted == gone else wanted
    return wanted, before, [FileRemoval(tenant, gone.kind, gone.subfolder, gone.filename)]
