"""Files of a history entry: those that its prompt made, and those that it named. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from gateway.comfy.file_refs import FileRef, rename
from gateway.comfy.graph import survey


@dataclass(frozen=True, slots=True)
class EntryFiles:
    """Files of an entry, each once: `made` by the prompt, or from ComfyUI's cache, and `named` in its graph."""

    made: tuple[FileRef, ...]
    named: tuple[FileRef, ...]


def files_of_entry(entry: Any, file_inputs: Collection[tuple[str, str]], maximum: int) -> EntryFiles:
    """Return the files of an entry, at most `maximum` made ones.

    Input files don't count as made, because a node that shows one did not write it.

    Args:
        file_inputs: the (class_type, input) that are known to name a file.
    """
    if not isinstance(entry, dict):
        return EntryFiles((), ())
    prompt = entry.get("prompt")
    graph = prompt[2] if isinstance(prompt, list) and len(prompt) > 2 and isinstance(prompt[2], dict) else {}
    named = {file.ref: None for file in survey(graph, file_inputs).files if file.ref is not None and not file.folder}
    return EntryFiles(made_files(entry.get("outputs"), maximum), tuple(named))


def made_files(outputs: Any, maximum: int) -> tuple[FileRef, ...]:
    """Return the files of an entry's outputs that its prompt made, each once, at most `maximum`."""
    made: dict[FileRef, None] = {}

    def note(ref: FileRef, is_made: bool) -> FileRef:
        if is_made and ref.kind != "input" and len(made) < maximum:
            made[ref] = None
        return ref

    for output in outputs.values() if isinstance(outputs, dict) else ():
        rename(output, note)
    return tuple(made)
