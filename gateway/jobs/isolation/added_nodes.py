"""Remove the nodes that the gateway added to a prompt from its messages, entries and refusals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

# The keys under which messages and entries of ComfyUI have ids of nodes (execution.py, comfy_execution/progress.py).
_LISTS = ("nodes", "executed")
_MAPS = ("nodes", "outputs", "meta")
_SINGLE = ("node_id", "display_node_id", "display_node", "parent_node_id", "real_node_id")

# For an added node the client's node for whose sake it was added: the id and the class.
Saver = Callable[[str], tuple[str, str]]


def without_added(data: Mapping[str, Any], added: Collection[str], saver: Saver) -> dict[str, Any] | None:
    """Return a message's data, a history entry or a refusal without added nodes; None if it is about one alone.

    An error at an added node becomes an error at the client's node for which it was added.
    """
    if isinstance(data.get("node"), str) and data["node"] in added:
        return None
    copy = dict(data)
    for key in _LISTS:
        if isinstance(ids := copy.get(key), list):
            copy[key] = [each for each in ids if not (isinstance(each, str) and each in added)]
    for key in _MAPS:
        if isinstance(nodes := copy.get(key), dict):
            copy[key] = {node_id: each for node_id, each in nodes.items() if node_id not in added}
    for key in _SINGLE:
        if isinstance(node_id := copy.get(key), str) and node_id in added:
            copy[key], class_type = saver(node_id)
            for named in ("node_type", "class_type"):
                if named in copy:
                    copy[named] = class_type
    if isinstance(errors := copy.get("node_errors"), dict):
        copy["node_errors"] = _errors_without(errors, added, saver)
    if isinstance(error := copy.get("error"), dict) and isinstance(extra := error.get("extra_info"), dict):
        copy["error"] = {**error, "extra_info": without_added(extra, added, saver) or {}}
    if isinstance(status := copy.get("status"), dict) and isinstance(messages := status.get("messages"), list):
        told = [_message_without(message, added, saver) for message in messages]
        copy["status"] = {**status, "messages": [message for message in told if message is not None]}
    return copy


def _errors_without(errors: Mapping[str, Any], added: Collection[str], saver: Saver) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for node_id, each in errors.items():
        if node_id not in added:
            kept[node_id] = each
            continue
        own_id, class_type = saver(node_id)
        kept.setdefault(own_id, {**each, "class_type": class_type} if isinstance(each, dict) else each)
    return kept


def _message_without(message: Any, added: Collection[str], saver: Saver) -> Any:
    if not (isinstance(message, (list, tuple)) and len(message) == 2 and isinstance(message[1], dict)):
        return message
    data = without_added(message[1], added, saver)
    return None if data is None else [message[0], data]
