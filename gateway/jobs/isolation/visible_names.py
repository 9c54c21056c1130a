"""Names that a tenant sees for files in secret folders: those that a single ComfyUI would have given. Pure.

Each secret folder counts its files from 1, so the number in a file's name there is the backend's alone. The tenant's
own count goes on for each folder and prefix, over all backends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from gateway.comfy.file_refs import FileRef
from gateway.comfy.saved_names import Saved, saved
from gateway.jobs.isolation.secret_folders import NO_NAME, UNNAMED

_FOLDER = re.compile(r"(?P<secret>o/[0-9a-f]{32}/f)(?:/(?P<rest>.*))?", re.DOTALL)


def is_steered(there: FileRef) -> bool:
    """Return True if a file on a backend lies in a secret folder of savers."""
    return (
        there.kind == "output" and there.subfolder.startswith("o/") and _FOLDER.fullmatch(there.subfolder) is not None
    )


def secret_folder(there: FileRef) -> str:
    """Return the secret folder of a steered file, empty for any other file."""
    match = _FOLDER.fullmatch(there.subfolder)
    return match["secret"] if match is not None and there.kind == "output" else ""


def visible_name(there: FileRef, number_of: Callable[[FileRef, Saved], int]) -> FileRef:
    """Return the name that a tenant is to see for a steered file.

    Args:
        there: the file on its backend, in a secret folder.
        number_of: returns the tenant's number for a file that is to lie in a folder (a file without a name), and have
            these parts.
    """
    match = _FOLDER.fullmatch(there.subfolder)
    folder = FileRef(there.kind, (match["rest"] or "") if match is not None else there.subfolder, "")
    parts = saved(there.filename)
    if parts is None:
        return replace(folder, filename=there.filename)
    if parts.prefix == UNNAMED:
        parts = replace(parts, prefix=NO_NAME)
    return replace(folder, filename=replace(parts, number=number_of(folder, parts)).filename)
