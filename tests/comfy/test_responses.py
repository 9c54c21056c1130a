"""What a backend says is read into values of the types that they are said to have."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalogue.merging import features, system_stats
from gateway.comfy import events, previews
from gateway.comfy.backend_errors import BadAnswer
from gateway.comfy.file_refs import rename
from gateway.comfy.json_stream import Unreadable
from gateway.comfy.response_bodies import UNPACKED_PIECE, unpacker
from gateway.comfy.responses import (
    read_features,
    read_history_entry,
    read_queue,
    read_stored,
    read_system_stats,
    read_taken,
)

ITEM = [1, "a", {}, {}, []]


def test_an_odd_item_of_a_queue_is_left_out() -> None:
    odd = [{"a": 1, "b": 2}, [1], [1, 5], [1, ""], [1, "x" * 300], None, "ab"]
    assert read_queue({"queue_running": [*odd, ITEM], "queue_pending": odd}).running_ids == {"a"}


@pytest.mark.parametrize(
    "value", [[], None, {}, {"queue_running": []}, {"queue_running": {"a": 1}, "queue_pending": []}]
)
def test_what_is_no_queue_is_refused(value: Any) -> None:
    with pytest.raises(Unreadable):
        read_queue(value)


@pytest.mark.parametrize("amount", ["abc", -1, None, [], {}, 1.5, True, 10**40])
def test_an_odd_amount_is_left_out(amount: Any) -> None:
    stats = read_system_stats(
        {"system": {"ram_free": amount, "os": "x"}, "devices": [{"vram_free": amount, "name": 1}]}
    )
    assert (stats.system, stats.devices) == ({"os": "x"}, [{"name": 1}])
    assert system_stats([("b", stats.raw)])["devices"] == [{"name": "b: 1", "index": 0}]


def test_a_cpu_has_no_vram() -> None:
    devices = [{"type": "cpu", "vram_total": 5}, {"type": "cuda", "vram_total": 7}, {"vram_total": 9}]
    stats = read_system_stats({"system": {}, "devices": devices})
    assert list(stats.gpus) == [(1, devices[1]), (2, devices[2])]


@pytest.mark.parametrize("devices", [{"a": 1}, "abc", None, [1, None, []]])
def test_what_are_no_devices_are_left_out(devices: Any) -> None:
    assert read_system_stats({"system": {}, "devices": devices}).devices == []


@pytest.mark.parametrize("limit", [-1, 0, "x", None, 1.5, True, [], 10**40])
def test_an_odd_upload_limit_is_nobodys(limit: Any) -> None:
    """Not even if another backend says a proper one."""
    odd, good = read_features({"max_upload_size": limit, "a": True}), read_features({"max_upload_size": 5000})
    assert features([odd, good], 10_000)["max_upload_size"] == 5000


def test_an_entry_has_objects() -> None:
    def read(entry: Any) -> Any:
        return read_history_entry({"id": entry}, "id", b"")

    assert read({"outputs": None, "status": None, "prompt": 5}).entry == {"outputs": {}, "meta": {}, "status": None}
    for odd in ({"outputs": []}, {"status": "x"}, {"outputs": {"1": []}}, {"meta": 5}, [], None, 5):
        with pytest.raises(Unreadable):
            read(odd)
    assert read_history_entry({}, "id", b"") is None


def test_answers_to_what_is_sent() -> None:
    assert read_taken(b'{"prompt_id": 5, "node_errors": []}') == (None, {})
    assert read_stored(b'{"name": "a.png", "subfolder": null}') == ("", "a.png")
    for odd in (b"", b"[]", b"{}", b'{"name": 5}', b'{"name": "a", "subfolder": ["x"]}', b'{"name": ""}'):
        with pytest.raises(Unreadable):
            read_stored(odd)


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        ("executed", {"node": ["x"], "output": {}, "prompt_id": "p"}),
        ("executed", {"node": "1", "output": [], "prompt_id": "p"}),
        ("executed", {"node": "1", "output": {}, "prompt_id": 5}),
        ("executing", {"node": {}, "prompt_id": "p"}),
        ("executing", {"prompt_id": "p"}),
        ("execution_cached", {"nodes": ["1", 2], "prompt_id": "p"}),
        ("execution_cached", {"nodes": "12", "prompt_id": "p"}),
        ("execution_cached", {"prompt_id": "p"}),
        ("execution_error", {"exception_message": ["x"], "prompt_id": "p"}),
        ("execution_error", {"traceback": "x", "prompt_id": "p"}),
        ("execution_success", {"prompt_id": ["p"]}),
        ("execution_success", {"prompt_id": "p" * 300}),
        ("progress_state", {"nodes": [], "prompt_id": "p"}),
    ],
)
def test_an_odd_event_is_refused(type_: str, data: Any) -> None:
    assert events.parse(json.dumps({"type": type_, "data": data})) is None


def test_what_a_custom_node_sends_is_passed_on() -> None:
    said = b'{"type":"my-node","data":{"node":["x"],"prompt_id":5}}'
    found = events.parse(said)
    assert found is not None
    assert (found.prompt_id, found.raw) == (None, said)


def test_a_large_event_is_refused_before_it_is_parsed() -> None:
    """By its bytes, or by the values that it may have."""
    for text in (b'"' + b"x" * events.MAX_TEXT + b'"', b"[" + b"[]," * 80_000 + b"1]"):
        assert events.parse(b'{"type":"a","data":{"b":' + text + b"}}") is None
    assert events.parse(b'{"type":"a","data":{"b":"' + b"x" * 10**6 + b'"}}') is not None


def test_a_preview_has_little_metadata() -> None:
    frame = previews.encode_with_metadata(previews.Preview({"a": "x" * previews.MAX_METADATA}, "image/png", b"i"))
    assert previews.parse_with_metadata(frame) is None


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate", "x-gzip"]))
def test_any_bytes_unpack_or_are_refused(data: bytes, coding: str) -> None:
    unpack = unpacker(coding)
    assert unpack is not None
    try:
        list(unpack(data))
    except BadAnswer:
        pass


def test_a_bomb_is_unpacked_in_pieces() -> None:
    unpack = unpacker("gzip")
    assert unpack is not None
    packed, unpacked = gzip.compress(bytes(20_000_000)), 0
    for piece in unpack(packed):
        assert len(piece) <= UNPACKED_PIECE
        unpacked += len(piece)
    assert unpacked == 20_000_000
    with pytest.raises(BadAnswer, match="not asked for"):
        unpacker("br")


def test_long_texts_are_not_taken_for_names() -> None:
    """Looking for the end of a name in them would take a second."""
    text, asked = "a." * 100_000 + "png", []
    output = {"images": [{"filename": "a.png", "x": text}, {"filename": text}, {"filename": "a", "subfolder": text}]}
    assert rename(output, lambda ref, made: asked.append(ref.filename) or ref) == output
    assert asked == ["a.png"]
