"""Names beside one that is taken. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, count
from os.path import splitext

from gateway.comfy.file_refs import FileRef


def marked(filename: str, mark: str) -> str:
    """Return `filename` with ``~mark`` before its suffix: a name beside one that is taken."""
    stem, dot, suffix = filename.rpartition(".")
    return f"{stem}~{mark}.{suffix}" if dot and stem else f"{filename}~{mark}"


def free_name(ref: FileRef, backend: str, is_taken: Callable[[FileRef], bool]) -> FileRef:
    """Return a name that is not taken: `ref`, or one with the backend's name and a number.

    Few names are looked at, because a file that each job writes over may have thousands of former names.
    """
    if not is_taken(ref):
        return ref

    def name(attempt: int) -> FileRef:
        mark = backend if attempt == 1 else f"{backend}-{attempt}"
        return replace(ref, filename=marked(ref.filename, mark))

    taken, free = 0, 1
    while is_taken(name(free)):
        taken, free = free, free * 2
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if is_taken(name(middle)) else (taken, middle)
    return name(free)


def numbered_name(wanted: FileRef, is_free: Callable[[FileRef], bool]) -> FileRef:
    """Return the wanted name if it is free, else the first one that is of ``name (1).png``, ``name (2).png``, …"""
    stem, suffix = splitext(wanted.filename)
    names = (replace(wanted, filename=f"{stem} ({number}){suffix}") for number in count(1))
    return next(ref for ref in chain([wanted], names) if is_free(ref))
