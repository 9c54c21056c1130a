"""History entries: ``{"prompt": [number, id, graph, extra_data, outputs], "outputs", "status", "meta"}``.

As written by execution.py (PromptQueue.task_done) and main.py (prompt_worker).
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """Outcome of a job."""

    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"


def outcome_of(entry: dict[str, Any]) -> Outcome:
    """Return the outcome of an entry's job. If the status is ``error``, a message tells an interrupt from a failure."""
    status = entry.get("status")
    if not isinstance(status, dict) or status.get("status_str") != "error":
        return Outcome.SUCCESS
    if any(name == "execution_interrupted" for name, _ in messages_of(status)):
        return Outcome.CANCELLED
    return Outcome.ERROR


def messages_of(status: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the messages of an entry's status. Skip items of another form, because a custom node may add to them."""
    messages = status.get("messages") if isinstance(status, dict) else None
    return [
        (message[0], message[1])
        for message in (messages if isinstance(messages, (list, tuple)) else ())
        if isinstance(message, (list, tuple))
        and len(message) == 2
        and isinstance(message[0], str)
        and isinstance(message[1], dict)
    ]


def failure_event(prompt_id: str, reason: str, type_: str, timestamp: int | None = None) -> dict[str, Any]:
    """Return the data of an ``execution_error`` for a job that no backend could run."""
    return {
        "prompt_id": prompt_id,
        "node_id": "",
        "node_type": "",
        "executed": [],
        "exception_message": reason,
        "exception_type": type_,
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
        "timestamp": int(time.time() * 1000) if timestamp is None else timestamp,
    }


def interruption_event(prompt_id: str) -> dict[str, Any]:
    """Return the data of an ``execution_interrupted`` for a job, if no backend can send the event."""
    timestamp = int(time.time() * 1000)
    return {"prompt_id": prompt_id, "node_id": "", "node_type": "", "executed": [], "timestamp": timestamp}


def entry_without_outputs(prompt: list[Any], type_: str, event: dict[str, Any]) -> dict[str, Any]:
    """Return the history entry of a job that ran, without its outputs. `type_` and `event` are its last message."""
    is_success = type_ == "execution_success"
    start = {"prompt_id": event.get("prompt_id"), "timestamp": event.get("timestamp")}
    status = {
        "status_str": "success" if is_success else "error",
        "completed": is_success,
        "messages": [["execution_start", start], [type_, event]],
    }
    return {"prompt": prompt, "outputs": {}, "status": status, "meta": {}}


def entry_without_run(prompt: list[Any], type_: str, event: dict[str, Any]) -> dict[str, Any]:
    """Return the history entry of a job whose end no backend knows. `type_` and `event` are its last message."""
    start = {"prompt_id": event["prompt_id"], "timestamp": event["timestamp"]}
    messages = [["execution_start", start], [type_, event]]
    return {
        "prompt": prompt,
        "outputs": {},
        "status": {"status_str": "error", "completed": False, "messages": messages},
        "meta": {},
    }
