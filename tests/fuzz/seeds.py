"""Well-formed examples to begin with: what the recordings of a real ComfyUI hold, and our tests' prompts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from gateway.comfy.previews import Preview, encode_legacy, encode_with_metadata
from gateway.simulator.catalogue import load_object_info
from gateway.simulator.options import SimulatorOptions
from tests.support.odd_info import DROPPED, KEPT, REPAIRED
from tests.support.workflows import failing, slow, text_to_image

RECORDINGS = Path(__file__).parent.parent / "conformance" / "recordings"


@cache
def _found() -> tuple[list[Any], list[Any]]:
    """Socket messages, and history entries, anywhere in the recordings."""
    messages: list[Any] = []
    entries: list[Any] = []

    def look(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, dict):
            if isinstance(value.get("type"), str) and isinstance(value.get("data"), dict):
                messages.append({"type": value["type"], "data": value["data"]})
            if {"prompt", "outputs", "status"} <= value.keys():
                entries.append(value)
            for item in value.values():
                look(item)

    for path in sorted(RECORDINGS.glob("*.json")):
        look(json.loads(path.read_text()))
    return messages, entries


def messages() -> list[Any]:
    """Socket messages, one of each type."""
    by_type = {message["type"]: message for message in _found()[0]}
    assert {"executed", "progress_state", "execution_error"} <= by_type.keys()
    return list(by_type.values())


def entries() -> list[Any]:
    """History entries."""
    assert _found()[1]
    return _found()[1][:8]


def object_infos() -> list[Any]:
    """Answers to GET /object_info: a good one, and odd ones."""
    good = load_object_info(SimulatorOptions())
    few = {name: good[name] for name in ("KSampler", "LoadImage", "LoraLoader", "SaveImage")}
    return [few, {**few, **DROPPED}, {**few, **REPAIRED}, {"LoadImage": REPAIRED["all three"]}, KEPT]


def bodies() -> list[Any]:
    """Bodies of POST /prompt."""
    return [
        {"prompt": slow()},
        {"prompt": failing(), "client_id": "c", "front": True, "number": 1.5},
        {
            "prompt": text_to_image(),
            "prompt_id": "11111111-2222-4333-8444-555555555555",
            "extra_data": {"api_key_comfy_org": SECRET, "extra_pnginfo": {"workflow": {"id": "w", "nodes": []}}},
            "partial_execution_targets": ["7"],
        },
        {"prompt": {"1": {"class_type": "LoadImage", "inputs": {"image": {"__value__": "x/a.png [output]"}}}}},
    ]


SECRET = "partner-secret-of-a-seed"


def previews() -> list[bytes]:
    """Binary frames."""
    preview = Preview({"node_id": "1", "prompt_id": "11111111-2222-4333-8444-555555555555"}, "image/png", b"\x89PNG")
    return [encode_with_metadata(preview), encode_legacy(preview), b"\x00\x00\x00\x03text"]


def v2_bodies() -> list[Any]:
    """Bodies of POST /api/v2/jobs."""
    asset = {"__type": "core/ASSET", "info": {"id": "a", "hash": "blake3:00", "file_path": "a.png"}}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": asset}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    return [
        {"workflow": graph, "metadata": {"client": "acme"}, "priority": 5},
        {"workflow": graph, "metadata": "batch", "extra_data": {"api_key_comfy_org": "a-partners-key"}},
        {"workflow": {"nodes": [], "links": []}},
        {"workflow": graph, "webhook_url": None, "inputs": {}},
    ]
