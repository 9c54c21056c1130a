"""Checks of the readers of a backend's answers: whatever a body says, what is read of it has its types."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from multidict import CIMultiDict

from gateway.catalogue.listings import list_of
from gateway.comfy import events, responses
from gateway.comfy.client import Answer
from gateway.comfy.json_stream import JsonStream, Unreadable
from gateway.comfy.responses import HistoryEntry, Queue, SystemStats

QUEUE = {"queue_running": [[0, "a", {"1": {}}, {"client_id": "c"}, ["1"]]], "queue_pending": [[1.5, "b", {}, {}, []]]}
STATS = {
    "system": {"os": "posix", "ram_total": 64, "ram_free": 32, "comfyui_version": "0.33.0", "argv": ["main.py"]},
    "devices": [{"name": "cuda:0", "type": "cuda", "index": 0, "vram_total": 24, "vram_free": 12}],
}
TAKEN = {"prompt_id": "a", "number": 1, "node_errors": {}}
STORED = {"name": "a.png", "subfolder": "", "type": "input"}
FLAGS = {"supports_preview_metadata": True, "max_upload_size": 104857600}


async def whole(*pieces: bytes) -> AsyncIterator[bytes]:
    """Pieces of a document, as they come."""
    for piece in pieces:
        yield piece


def as_json(body: bytes) -> Any:
    """Return what the gateway parses, or raise as it does."""
    return responses.json_codec.loads(body)


def driven(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing, without a loop."""
    while True:
        try:
            work.send(None)
        except StopIteration as ended:
            return ended.value


def queue(body: bytes) -> None:
    """A /queue, read whole and piece by piece."""
    whole_, pieced = read(lambda: responses.read_queue(as_json(body))), read_pieces(body, responses.read_large_queue)
    for found in (whole_, pieced):
        if isinstance(found, Queue):
            assert all(isinstance(each, str) for each in found.running_ids | found.pending_ids)
    if isinstance(whole_, Queue):
        assert isinstance(pieced, Queue), body
        assert (whole_.running_ids, whole_.pending_ids) == (pieced.running_ids, pieced.pending_ids), body


def entry(body: bytes) -> None:
    """An answer to GET /history/{id}, read whole and piece by piece."""

    async def large(document: JsonStream) -> Any:
        return await responses.read_large_history_entry(document, "id", 10_000_000)

    whole_ = read(lambda: responses.read_history_entry(as_json(body), "id", body))
    for found in (whole_, read_pieces(body, large)):
        if isinstance(found, HistoryEntry):
            assert all(isinstance(output, dict) for output in found.entry["outputs"].values())
            assert isinstance(found.entry.get("status"), dict | None)
            assert isinstance(found.entry.get("prompt", []), list)
            json.loads(found.encode(found.entry))


def stats(body: bytes) -> None:
    """A /system_stats."""
    found = read(lambda: responses.read_system_stats(as_json(body)))
    if isinstance(found, SystemStats):
        numbers = [found.system.get("ram_free", 0), *(device.get("vram_free", 0) for device in found.devices)]
        assert all(responses.is_amount(number) for number in numbers)
        assert isinstance(found.version, str)


def features(body: bytes) -> None:
    """The flags that a socket tells."""
    found = events.parse(b'{"type": "feature_flags", "data": ' + body + b"}")
    if found is not None:
        assert responses.read_features(found.data).get("max_upload_size", 1) > 0


def taken(body: bytes) -> None:
    """An answer to POST /prompt."""
    known_as, errors = responses.read_taken(body)
    assert isinstance(known_as, str | None)
    assert isinstance(errors, dict)


def stored(body: bytes) -> None:
    """An answer to POST /upload/image."""
    found = read(lambda: responses.read_stored(body))
    assert found is None or all(isinstance(part, str) for part in found)


def listed(body: bytes) -> None:
    """A list of models."""
    assert isinstance(list_of(Answer(200, CIMultiDict(), body)), list | None)


def event(body: bytes) -> None:
    """A message of a socket."""
    found = events.parse(body)
    if found is not None and found.type == "executed":
        assert found.data.get("node") not in frozenset({"x"})
        assert isinstance(found.data.get("output"), dict | None)
    if found is not None:
        assert isinstance(found.prompt_id, str | None)


def read(reader: Any) -> Any:
    """What is read; None if it is refused."""
    try:
        return reader()
    except ValueError:
        return None


def read_pieces(body: bytes, reader: Any) -> Any:
    """What is read of a document that comes a few bytes at a time; None if it is refused."""
    step = len(body) // 7 + 1
    document = JsonStream(whole(*(body[start : start + step] for start in range(0, len(body), step))), 10**8)
    try:
        return driven(reader(document))
    except Unreadable:
        return None


# Each reader, with a body that it reads.
CHECKS = (
    (queue, QUEUE),
    (stats, STATS),
    (features, FLAGS),
    (taken, TAKEN),
    (stored, STORED),
    (listed, ["a", "b"]),
    (entry, {"id": {"prompt": [1, "id", {}, {}, []], "outputs": {"1": {"a": [1]}}, "status": {}, "meta": {}}}),
)
