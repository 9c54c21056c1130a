"""Bodies of POST /api/v2/jobs, and references to assets in their graphs. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.file_refs import finished
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.forms import checked_life, checked_path, checked_type
from gateway.web.v2.labels import Note, decode, note_of
from gateway.web.v2.references import MAX_MISSING, Reference, may_hold_references, references_in, resolving
from gateway.web.v2.submission import SHORT, NewJob, error_of_refusal
from gateway.web.v2.submission import read as read_body
from tests.support.v2 import reference


def read(body: bytes) -> NewJob:
    """Read a body within the usual bounds."""
    return read_body(body, 150_000)


ID = "722f03dd-788b-4385-a0c2-d138ca2384fe"


def test_a_long_graph_goes_on_byte_for_byte() -> None:
    graph = b'{"1" : {"class_type": "A", "inputs": {"x": 1e999, "y": 123456789012345678901, "z": "%b"}}}' % (
        b"z" * SHORT
    )
    extra = b'{"api_key_comfy_org": "k"}'
    new = read(b'{"metadata": "m", "workflow": [], "workflow": %b, "extra_data": %b}' % (graph, extra))
    assert new.workflow == graph
    body = new.prompt_body(ID, new.workflow)
    assert graph in body
    assert json.loads(body)["extra_data"] == {"metadata": "m", "api_key_comfy_org": "k"}
    assert json.loads(body)["prompt_id"] == ID


def test_a_long_body_of_many_values_is_not_split() -> None:
    body = b'{"workflow": {"1": [%b1]}}' % (b"[]," * SHORT)
    with pytest.raises(V2Error) as caught:
        read_body(body, 1_000)
    assert caught.value.status == 413


@pytest.mark.parametrize("padding", ["", "z" * SHORT])
def test_short_and_long_bodies_are_read_alike(padding: str) -> None:
    graph = {"1": {"class_type": "A", "inputs": {"x": [1.5, None, "ä"], "big": 123456789012345678901, "z": padding}}}
    new = read(json.dumps({"priority": 5, "workflow": graph, "metadata": {"a": "b"}}).encode())
    assert json.loads(new.workflow) == graph
    assert (new.note.priority, new.note.metadata) == (5, {"a": "b"})
    infinite = read(b'{"workflow": {"1": {"x": 1e999, "z": "%b"}}}' % padding.encode())
    assert json.loads(infinite.workflow)["1"]["x"] == float("inf")
    for body, code in (
        (f'{{"workflow": [], "z": "{padding}"}}', "invalid_workflow"),
        (f'{{"workflow": {{}}, "inputs": 1, "z": "{padding}"}}', "invalid_workflow"),
        (f'{{"workflow": {{"nodes": [], "links": [], "z": "{padding}"}}}}', "workflow_format_ui"),
        (f'["{padding}"]', "invalid_request"),
        (f'{{"workflow": {{}}, "z": "{padding}"', "invalid_request"),
    ):
        with pytest.raises(V2Error) as caught:
            read(body.encode())
        assert caught.value.code == code


def test_names_inside_the_graph_are_no_fields() -> None:
    graph = {"1": {"class_type": "A", "inputs": {"nodes": [], "links": [], "webhook_url": 1}}}
    assert json.loads(read(json.dumps({"workflow": graph}).encode()).workflow) == graph
    with pytest.raises(V2Error) as caught:
        read(json.dumps({"workflow": {"links": None, "nodes": []}}).encode())
    assert caught.value.code == "workflow_format_ui"


def test_a_note_is_kept() -> None:
    for metadata in (None, "text", {"a": "b"}):
        note = note_of({"metadata": metadata, "priority": -5})
        assert decode(note.encode()) == note
    assert note_of({}).is_empty
    assert note_of({"metadata": {}}).is_empty
    assert decode("no json") == decode("[]") == Note()


def test_references_anywhere() -> None:
    graph: Any = {
        "1": {"inputs": {"image": reference("a"), "list": [1, [reference("b")]], "deep": {"x": {"y": reference("a")}}}},
        "2": {"inputs": {"no": {"__type": "core/OTHER", "info": {"id": "a"}}, "text": "core/ASSET"}},
    }
    assert may_hold_references(json.dumps(graph).encode())
    assert not may_hold_references(b'{"text": "core/ASSETS"}')
    found = finished(references_in(graph))
    assert [each.id for each in found if isinstance(each, Reference)] == ["a", "b", "a"]
    assert finished(resolving(graph, lambda each: f"{each.id}.png")) == []
    assert graph["1"]["inputs"] == {"image": "a.png", "list": [1, ["b.png"]], "deep": {"x": {"y": "a.png"}}}
    assert graph["2"]["inputs"]["no"]["__type"] == "core/OTHER"


def test_what_is_missing_is_told_within_bounds() -> None:
    graph = {
        "1": {"inputs": [reference("x" * 9_999), {"__type": "core/ASSET", "info": 5}, reference(None), reference("")]}
    }
    missing = finished(resolving(graph, lambda _: None))
    assert missing == ["x" * 300, "<malformed core/ASSET: missing info>", "<no id>", "<no id>"]
    many = {"1": [reference(str(n)) for n in range(1_000)]}
    assert len(finished(resolving(many, lambda _: None))) == MAX_MISSING


@given(
    st.recursive(
        st.sampled_from(["core/ASSET", "x", None, 5]) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["__type", "info", "id", "hash", "a"]), inner, max_size=4)
        ),
        max_leaves=30,
    )
)
def test_any_graph_is_looked_through(graph: Any) -> None:
    finished(references_in(graph))
    missing = finished(resolving(graph, lambda each: "name" if each.id == "x" else None))
    assert all(isinstance(each, str) and len(each) <= 300 for each in missing)
    json.dumps(graph)


def test_a_refusal_tells_no_path_of_a_backend() -> None:
    errors = [{"type": "exception", "extra_info": {"input_name": "x", "traceback": ["/secret/path"]}}, "odd"]
    body = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "M"},
        "node_errors": {"1": {"errors": errors}},
    }
    error = error_of_refusal(400, body)
    assert (error.status, error.code, str(error)) == (422, "invalid_workflow", "M")
    assert "secret" not in json.dumps(error.details)
    for status, odd, expected in (
        (400, {"error": "text"}, 422),
        (400, {}, 422),
        (403, {"error": {"message": "m", "details": "d"}}, 403),
        (413, {"error": {"type": "prompt_too_large"}}, 413),
        (500, {"error": {"message": "/secret"}}, 502),
    ):
        assert error_of_refusal(status, odd).status == expected
    assert "secret" not in str(error_of_refusal(500, {"error": {"message": "/secret"}}))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", ("", "a.png")),
        ("input/a.png", ("", "a.png")),
        ("input/sub/./a.png", ("sub", "a.png")),
        ("input\\sub\\a.png", ("sub", "a.png")),
        ("", None),
        (5, None),
        ("/a", None),
        ("\\a", None),
        ("c:a", None),
        ("a/../b", None),
        ("models/a", None),
        ("input", ("", "input")),
        ("a\0b", None),
        ("input/" + "x" * 256 + "/a", None),
        ("\ud800.png", None),
    ],
)
def test_paths(path: Any, expected: tuple[str, str] | None) -> None:
    if expected is None:
        with pytest.raises(V2Error):
            checked_path(path)
    else:
        ref = checked_path(path)
        assert (ref.kind, ref.subfolder, ref.filename) == ("input", *expected)


def test_types_and_lives() -> None:
    assert checked_type("image/webp", "a.png") == "image/webp"
    for odd in ("", "x", "a/b\r\nX: 1", "application/octet-stream", "a/b;" + "x" * 99):
        assert checked_type(odd, "a.png") == "image/png"
    assert [checked_life(each) for each in (None, "", 60, "604800")] == [None, None, 60, 604_800]
    for wrong in ("59", 604_801, "x", -1, True, 1.5, "9" * 20):
        with pytest.raises(V2Error):
            checked_life(wrong)
