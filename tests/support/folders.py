"""Looks into folders in which a gateway or a backend writes meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder. What goes away during the look is left out, as `os.walk` does."""
    return [Path(within, name) for within, _, names in os.walk(folder) for name in names]


def contents_below(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of all files below a folder, but for files that go away during the look."""
    found = {}
    for path in files_below(folder):
        try:
            found[path] = path.read_bytes()
        except FileNotFoundError:
            continue
    return found
