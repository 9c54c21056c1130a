"""Names of the copies of files that the gateway puts on other backends. Pure."""

from __future__ import annotations

from gateway.comfy.file_refs import FileRef, without_pattern
from gateway.files.free_names import marked
from gateway.files.values import Stored


def copy_of(ref: FileRef, source: str) -> FileRef:
    """Return the name for the copy of a backend's file: marked, so that no node is about to save under that name."""
    plain = without_pattern(ref)
    return FileRef(plain.kind, plain.subfolder, marked(plain.filename, source))


def stored_copy_of(wanted: FileRef, stored: Stored) -> FileRef:
    """Return the name for the copy of a stored file, in place of the one that is wanted on its backend."""
    return copy_of(wanted, stored.digest[:8])
