"""The files in a node's output: any object with a ``filename``, however deep, whatever the key above it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file as ComfyUI names it: `kind` is its ``type`` (input, output or temp)."""

    kind: str
    subfolder: str
    filename: str


def ref_of(value: dict[str, Any]) -> FileRef | None:
    """The file that an object of an output names, if it names one."""
    filename = value.get("filename")
    if not isinstance(filename, str) or not filename:
        return None
    kind, subfolder = value.get("type", "output"), value.get("subfolder", "")
    if not isinstance(kind, str) or not isinstance(subfolder, str):
        return None
    return FileRef(kind, subfolder, filename)


def rename(value: Any, new_name: Callable[[FileRef], str], depth: int = 0) -> Any:
    """A copy of an output in which each file has the name that `new_name` gives it. Untouched parts are shared."""
    if depth > MAX_DEPTH:
        return value
    if isinstance(value, list):
        items = [rename(item, new_name, depth + 1) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if not isinstance(value, dict):
        return value
    copy = {key: rename(item, new_name, depth + 1) for key, item in value.items()}
    changed = any(copy[key] is not item for key, item in value.items())
    if (ref := ref_of(value)) is not None and (name := new_name(ref)) != ref.filename:
        copy["filename"] = name
        changed = True
    return copy if changed else value
