"""Bounds of a prompt's body: the size of its graph, and the number of files and targets that it may name. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.comfy import graph, json_codec
from gateway.comfy.errors import error_body

# Maximum characters of a node's id, which is a number, a word, or some of them joined.
MAX_ID = 200
_LONG_TEXT = 64 * 1024
_EMPTY: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on a prompt. Values are counted by commas and opening brackets in its JSON, including those in texts.

    Attributes:
        nodes: maximum nodes of the graph, and maximum files that it may name.
        depth: maximum nesting of the body's JSON.
        graph_values: maximum values of the graph, because each judgement or change of a prompt visits all of them.
        body_values: maximum values of the body, which also holds the workflow that a web UI embeds.
        outputs: maximum nodes that `partial_execution_targets` may name.
        bytes: maximum bytes of the body as ComfyUI writes it, in ASCII, because history entries have it so.
    """

    nodes: int = 2_000
    depth: int = 200
    graph_values: int = 40_000
    body_values: int = 150_000
    outputs: int = 500
    bytes: int = 8 * 1024**2


class Rejection(Exception):
    """Rejection of a body, with the response in ComfyUI's error form."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(body["error"]["message"])
        self.status = status
        self.body = body


def check_count(what: str, count: int, maximum: int) -> None:
    """Refuse more of something than `dispatch.max_nodes`."""
    if count > maximum:
        extra = {"limit": "max_nodes", "value": maximum, "used": count}
        details = f"{count} {what}; at most {maximum} are taken (dispatch.max_nodes)"
        raise rejection("graph_too_large", "The graph is too large", details, extra)


def check_targets(targets: Any, maximum: int) -> None:
    """Refuse too many targets, because ComfyUI searches them for each node (execution.py, validate_prompt).

    Refuse a number or a boolean, too, because ComfyUI can't search those, and answers a bare 500.
    """
    if isinstance(targets, (int, float)):
        details = f"partial_execution_targets must be a list of ids of nodes; got {name_of(targets)}"
        raise rejection("invalid_targets", "The targets can't be read", details)
    # Bound texts and objects, too, because ComfyUI searches targets of any type.
    if isinstance(targets, (list, str, dict)) and len(targets) > maximum:
        raise too_many_outputs(len(targets), maximum)


def drop_unreadable_meta(graph: Mapping[str, Any]) -> None:
    """Drop each ``_meta`` that is no object, because ComfyUI answers a bare 500 if it knows no such class."""
    for node in graph.values():
        if "_meta" in node and not isinstance(node["_meta"], dict):
            del node["_meta"]


def too_many_outputs(count: int, maximum: int) -> Rejection:
    """Return the refusal of a prompt with too many output nodes."""
    details = f"{count} output nodes; at most {maximum} are taken (dispatch.max_outputs)"
    extra = {"limit": "max_outputs", "value": maximum, "used": count}
    return rejection("too_many_outputs", "The prompt has too many outputs", details, extra)


def check_values(body: bytes, prompt: Any, dumps: Callable[[Any], bytes], maximum: int) -> None:
    """Refuse a graph with too many values. `dumps` writes all of it.

    Commas and brackets are counted first, because that is quick; those in texts are no values.
    """
    if (
        min(json_codec.count_values(body), json_codec.count_values(dumps(prompt))) > maximum
        and (used := _count(prompt)) > maximum
    ):
        details = f"it has more than {maximum} values (dispatch.max_graph_values)"
        extra = {"limit": "max_graph_values", "value": maximum, "used": used}
        raise rejection("graph_too_large", "The graph is too large", details, extra)


def _count(value: Any) -> int:
    """Return the number of values in a parsed document, whose size is bounded already."""
    count, left = 0, [value]
    while left:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return count


def check_graph(prompt: Any, bounds: Bounds) -> None:
    """Refuse a value that is no graph, has too many nodes, or long ids, classes or titles, which errors repeat."""
    if not isinstance(prompt, dict):
        raise rejection(
            "invalid_prompt",
            "The prompt must be an object of nodes by their ids",
            f"got {name_of(prompt)}; in the web UI, export the workflow with 'Export (API)'",
        )
    if is_web_workflow(prompt):
        raise web_workflow()
    check_count("nodes", len(prompt), bounds.nodes)
    for node_id, node in prompt.items():
        if not isinstance(node, dict):
            named = node_id[:200]
            raise rejection(
                "invalid_prompt", f"Node '{named}' must be an object", f"got {name_of(node)}", {"node_id": named}
            )
        class_type = node.get("class_type", "")
        if not isinstance(class_type, str):
            named = node_id[:200]
            raise rejection(
                "invalid_prompt", f"Node '{named}' must have a string as class_type", "", {"node_id": named}
            )
        if len(node_id) > MAX_ID:
            raise _long_name("id", node_id, MAX_ID)
        if len(class_type) > graph.MAX_NAME:
            raise _long_name("class_type", node_id)
        if "_meta" in node:
            _check_title(node_id, node["_meta"])


def is_graph(value: Mapping[str, Any]) -> bool:
    """Return True if each value is a node, so that the body must be a graph."""
    return bool(value) and all(isinstance(node, dict) and "class_type" in node for node in value.values())


def is_web_workflow(value: Mapping[str, Any]) -> bool:
    """Return True for a workflow as the web UI saves it: ``nodes`` and ``links`` are lists (its LiteGraph form)."""
    return isinstance(value.get("nodes"), list) and isinstance(value.get("links"), list)


def web_workflow() -> Rejection:
    """Return the refusal of a workflow in the web UI's own form."""
    return rejection(
        "workflow_not_exported",
        "This is a workflow as the web UI saves it, which can't be run as a prompt",
        "in the web UI, open the workflow and export it with 'File > Export (API)', then send that file",
    )


def check_texts(prompt: Any, maximum: int) -> None:
    """Refuse long texts that one emoji makes four times as large in memory: a graph is parsed again and again."""
    used, left = 0, [prompt]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and len(value) > _LONG_TEXT:
            used += sys.getsizeof(value)
    if used > maximum:
        details = f"its long texts take {used} bytes of memory; at most {maximum} (twice dispatch.max_prompt_bytes)"
        raise rejection("graph_too_large", "The graph is too large", details)


def _check_title(node_id: str, meta: Any) -> None:
    title = meta.get("title") if isinstance(meta, dict) else None
    if isinstance(title, (list, dict)):
        title = json_codec.dumps_exact(title)
    if isinstance(title, (str, bytes)) and len(title) > graph.MAX_NAME:
        raise _long_name("title", node_id)


def _long_name(what: str, node_id: str, maximum: int = graph.MAX_NAME) -> Rejection:
    named = node_id[:200]
    return rejection(
        "graph_too_large",
        "The graph is too large",
        f"the {what} of node '{named}' is too long; at most {maximum} characters are taken",
        {"node_id": named},
    )


def rejection(type_: str, message: str, details: str = "", extra: Mapping[str, Any] = _EMPTY) -> Rejection:
    """Return a refusal in ComfyUI's form."""
    return Rejection(400, error_body(type_, message, details[:500], dict(extra)))


def name_of(value: Any) -> str:
    """Return the name of a JSON value's type."""
    names = {list: "a list", str: "a string", dict: "an object", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
