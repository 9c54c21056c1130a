"""Read a history entry's outputs and messages: its files, its cached nodes and its times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import Any

from gateway.comfy import events, history
from gateway.comfy.file_refs import FileRef, finished, renaming
from gateway.files import identity
from gateway.files.index import Origin


def origin_of(is_made: bool, ran: bool) -> Origin:
    """Return the origin of a file in an entry: named only, written by this job, or written by an earlier one."""
    if not is_made:
        return Origin.NAMED
    return Origin.WROTE if ran else Origin.EARLIER


def each_file(
    outputs: Any, new_name: Callable[[FileRef, bool, str], FileRef], maximum: int = identity.MAX_FILES
) -> Any:
    """Return an entry's outputs with a new name for each file. `new_name` also gets the node's id.

    Files past `maximum` keep their names, because a node may name a million files that do not exist.
    """
    return finished(file_steps(outputs, new_name, maximum))


def file_steps(
    outputs: Any, new_name: Callable[[FileRef, bool, str], FileRef], maximum: int = identity.MAX_FILES
) -> Generator[None, None, Any]:
    """Rename as `each_file` does, in short steps."""
    left = maximum

    def named_at(node_id: str) -> Callable[[FileRef, bool], FileRef]:
        def name(ref: FileRef, is_made: bool) -> FileRef:
            nonlocal left
            left -= 1
            return new_name(ref, is_made, node_id) if left >= 0 else ref

        return name

    if not isinstance(outputs, dict):
        return (yield from renaming(outputs, named_at("")))
    renamed = {}
    for node_id, output in outputs.items():
        renamed[node_id] = yield from renaming(output, named_at(node_id))
    return renamed


def cached_nodes(status: Any) -> Collection[str]:
    """Return the nodes of an entry whose results were cached by an earlier prompt."""
    told = [data.get("nodes") for name, data in history.messages_of(status) if name == "execution_cached"]
    return {node for nodes in told if isinstance(nodes, list) for node in nodes if isinstance(node, str)}


def time_of(status: Any, names: Collection[str]) -> float | None:
    """Return the time of the last message with one of these names: seconds since 1970, by the backend's clock."""
    for name, data in reversed(history.messages_of(status)):
        if name in names and (timestamp := events.timestamp_of(data)) is not None:
            return timestamp / 1000
    return None
