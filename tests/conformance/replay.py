"""Plays recorded exchanges against a target, and compares what differs for no reason of time or chance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp

RECORDINGS = Path(__file__).parent / "recordings"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TEMP = re.compile(r"ComfyUI_temp_[a-z]{5}_\d{5}_")
_COUNTER = re.compile(r"_\d{5}_")
# What depends on the time, the machine or the run.
_VOLATILE = frozenset(
    {
        "timestamp",
        "create_time",
        "execution_start_time",
        "execution_end_time",
        "traceback",
        "current_inputs",
        "current_outputs",
        "number",
        "priority",
    }
)


def recording(name: str) -> Any:
    """A recorded file."""
    return json.loads((RECORDINGS / name).read_text("utf-8"))


def normal(value: Any) -> Any:
    """A value without what depends on the time, the machine or the run."""
    if isinstance(value, dict):
        return {normal(k): "*" if k in _VOLATILE else normal(v) for k, v in value.items()}
    if isinstance(value, list):
        items = [normal(item) for item in value]
        if _is_queue_item(value):
            items[0] = "*"
        if value and all(isinstance(item, dict) and "extra_info" in item for item in value):
            # ComfyUI walks a set of inputs: their errors come in any order.
            items.sort(key=lambda item: json.dumps(item, sort_keys=True))
        return items
    if isinstance(value, str):
        text = _COUNTER.sub("_#_", _TEMP.sub("ComfyUI_temp_#_", _UUID.sub("<id>", value)))
        return re.sub(r"\bc-queue\b", "<id>", text)
    return value


def _is_queue_item(value: list[Any]) -> bool:
    return len(value) == 5 and isinstance(value[1], str) and isinstance(value[2], dict) and isinstance(value[4], list)


async def exchange(http: aiohttp.ClientSession, base: str, request: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    """Make a recorded request; (status, body, headers). An empty or binary body is its length."""
    method, path = request["method"], request["path"]
    body = json.dumps(request["json"]).encode() if "json" in request else None
    headers = {"Content-Type": "application/json"} if body is not None else {}
    async with http.request(method, base + path, data=body, headers=headers) as answer:
        data = await answer.read()
        kind = answer.headers.get("Content-Type", "")
        value = json.loads(data) if kind.startswith("application/json") else {"_bytes": len(data)}
        return answer.status, value, dict(answer.headers)


def expected_body(body: Any) -> Any:
    """A recorded body, in the form that `exchange` gives."""
    return {"_bytes": body["_bytes"]} if isinstance(body, dict) and "_bytes" in body else body
