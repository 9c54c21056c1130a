"""Errors as ComfyUI says them on POST /prompt: ``{"error": {type, message, details, extra_info}, "node_errors": {}}``.

Wording from server.py (post_prompt) and comfy_execution/jobs.py (validate_job_id).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gateway.comfy import json_codec

# Characters of a value that an error tells.
MAX_TOLD = 8_192
_PROMPT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def error_body(
    type_: str,
    message: str,
    details: str = "",
    extra_info: dict[str, Any] | None = None,
    node_errors: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return an error in ComfyUI's form."""
    error = {"type": type_, "message": message, "details": details, "extra_info": extra_info or {}}
    return {"error": error, "node_errors": node_errors or {}}


def clipped(value: Any) -> Any:
    """Return a value for an error: whole, or clipped if it is longer than anybody reads."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TOLD else value[:MAX_TOLD] + "…"
    if isinstance(value, (list, dict)) and len(encoded := json_codec.dumps_exact(value)) > MAX_TOLD:
        return encoded[:MAX_TOLD].decode() + "…"
    return value


def no_prompt() -> dict[str, Any]:
    """Return the error for a body without ``prompt``."""
    return error_body("no_prompt", "No prompt provided", "No prompt provided")


def invalid_prompt_id() -> dict[str, Any]:
    """Return the error for a ``prompt_id`` that is not a canonical UUID."""
    return error_body(
        "invalid_prompt_id",
        "prompt_id must be a valid UUID",
        "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
        "omit it to let the server generate one",
    )


def is_prompt_id(value: object) -> bool:
    """Return True if the value is a UUID in canonical lowercase hyphenated form."""
    return isinstance(value, str) and _PROMPT_ID.fullmatch(value) is not None


# ComfyUI's errors for an input whose file is not there: a node class checks it itself, a list of files lacks it, or the
# check of either kind fails over it (execution.py, validate_inputs).
_OF_A_VALUE = frozenset({"custom_validation_failed", "value_not_in_list"})
_EXCEPTION = "exception_during_"


def nodes_with_bad_values(node_errors: Any) -> frozenset[str]:
    """Return the nodes that ``node_errors`` blames for an invalid value, which may name a file."""
    found = set()
    for node_id, node in node_errors.items() if isinstance(node_errors, dict) else ():
        errors = node.get("errors") if isinstance(node, dict) else None
        for error in errors if isinstance(errors, list) else ():
            type_ = error.get("type") if isinstance(error, dict) else None
            if type_ in _OF_A_VALUE or (isinstance(type_, str) and type_.startswith(_EXCEPTION)):
                found.add(node_id)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Lack:
    """Missing node class; or, with an input, a missing choice of one of its lists."""

    node_class: str
    input_name: str | None = None
    value: str = ""


def lacks_of(body: Any) -> list[Lack]:
    """Return the classes and choices that a refusal calls missing; none if it has any other error.

    Args:
        body: the refusal's body, or its JSON.
    """
    try:
        value = json_codec.loads(body) if isinstance(body, bytes) else body
        error, by_node = value["error"], value.get("node_errors") or {}
        if error["type"] == "missing_node_type":
            return (
                [Lack(error["extra_info"]["class_type"])] if isinstance(error["extra_info"]["class_type"], str) else []
            )
        found = []
        for node in by_node.values():
            for each in node["errors"]:
                about = each["extra_info"]
                lack = Lack(node["class_type"], about.get("input_name"), about.get("received_value"))
                texts = (lack.node_class, lack.input_name, lack.value)
                if each["type"] != "value_not_in_list" or not all(isinstance(text, str) for text in texts):
                    return []
                found.append(lack)
    except (json_codec.MalformedJson, LookupError, TypeError, AttributeError):
        return []
    return found


def told_as_text(body: bytes) -> str | None:
    """Return a refusal as one text: the error, then each node's errors. Return None if the body has another form."""
    try:
        value = json_codec.loads(body)
        error, by_node = value["error"], value.get("node_errors") or {}
        lines = [_line(error)]
        for node_id, node in by_node.items():
            lines += [f"node {node_id}, {node.get('class_type', '')}: {_line(each)}" for each in node["errors"]]
    except (json_codec.MalformedJson, KeyError, TypeError, AttributeError):
        return None
    return "; ".join(lines)


def _line(error: dict[str, Any]) -> str:
    details = error.get("details")
    return f"{error['message']}: {details}" if details else str(error["message"])
