"""Model folders of a backend, and the node classes whose lists come from them. Pure.

ComfyUI makes a list such as LoraLoader.lora_name from the files of a folder (folder_paths.py, get_filename_list), and
GET /models/{folder} answers with the same files. No description says which folder a list comes from, so the names that
the folder had tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.catalogue.capabilities import choice_lists
from gateway.catalogue.worker import no_rest

# Folders of a backend that are read: ComfyUI has 27, and custom nodes add some.
MAX_FOLDERS = 100
MAX_FOLDER_NAME = 200
# These hold no models, but all files of all custom nodes, or of data sets: their lists are long, and no input has them.
_NO_MODELS = frozenset({"custom_nodes", "datasets"})


@dataclass(slots=True)
class Folders:
    """Model folders of one connection to a backend.

    Attributes:
        connection: number of the connection, because another process may have other folders.
        names: the folders that are read.
        listed: for each folder that was read, the digest of the answer, and the files.
    """

    connection: int
    names: tuple[str, ...]
    listed: dict[str, tuple[bytes, Sequence[Any]]] = field(default_factory=dict)


def folders_to_read(listed: Sequence[Any]) -> tuple[str, ...]:
    """Return the folders to read, of those that GET /models lists."""
    names = (name for name in listed if isinstance(name, str) and 0 < len(name) <= MAX_FOLDER_NAME)
    return tuple(dict.fromkeys(name for name in names if name not in _NO_MODELS))[:MAX_FOLDERS]


def outdated_classes(
    info: Mapping[str, Any],
    changes: Collection[tuple[Sequence[Any] | None, Sequence[Any]]],
    rest: Callable[[], None] = no_rest,
) -> list[str]:
    """Return the node classes whose lists may have changed with folders.

    Args:
        info: the known descriptions.
        changes: for each folder, the files that it had (None if it was never read), and those that it has.
        rest: called between classes.
    """
    by_names, by_emptiness = _signs(info, changes, rest)
    if not by_names and not by_emptiness:
        return []
    found = []
    for name, description in info.items():
        rest()
        for choices in _lists(description):
            if (by_emptiness and not choices) or any(isinstance(each, str) and each in by_names for each in choices):
                found.append(name)
                break
    return found


def _signs(
    info: Mapping[str, Any],
    changes: Collection[tuple[Sequence[Any] | None, Sequence[Any]]],
    rest: Callable[[], None],
) -> tuple[set[str], bool]:
    """Return the names by which an outdated list is known, and True if empty lists may be outdated, too."""
    names: set[str] = set()
    may_be_empty = False
    offered: set[str] | None = None
    for before, now in changes:
        if before is not None:
            names.update(each for each in before if isinstance(each, str))
            may_be_empty = may_be_empty or not before
            continue
        # If the folder is read for the first time, the lists themselves tell which of its files they lack.
        if offered is None:
            offered = set()
            for description in info.values():
                rest()
                offered.update(each for choices in _lists(description) for each in choices if isinstance(each, str))
        files = {each for each in now if isinstance(each, str)}
        if not files <= offered:
            names |= files
            may_be_empty = may_be_empty or files.isdisjoint(offered)
    return names, may_be_empty


def _lists(description: Any) -> Iterator[list[Any]]:
    return (choices for _, _, choices in choice_lists(description))
