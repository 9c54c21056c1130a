"""POST /prompt's body, read."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import json_codec
from gateway.comfy.file_refs import FileRef
from gateway.jobs.state.prompt_bounds import Bounds, Rejection
from gateway.jobs.state.submission import decode_from_journal, encode_for_journal, read
from tests.support.json_values import JSON
from tests.support.workflows import slow, text_to_image


def test_what_is_read() -> None:
    body = {
        "prompt": text_to_image(),
        "client_id": "c",
        "front": True,
        "extra_data": {"extra_pnginfo": {"workflow": {"id": "w"}}, "api_key_comfy_org": "secret"},
        "partial_execution_targets": ["7"],
    }
    found = read(json.dumps(body).encode())
    assert json.loads(found.prompt) == body["prompt"]
    assert found.session_id == "c"
    assert found.front
    assert found.targets == ["7"]
    assert found.models == {"sd_xl_base_1.0.safetensors"}
    assert json.loads(found.extra_data) == {"extra_pnginfo": {"workflow": {"id": "w"}}}
    assert found.secrets == {"api_key_comfy_org": "secret"}
    assert json.loads(found.rest) == {"partial_execution_targets": ["7"]}


def test_the_journal_gives_back_all_but_the_secrets() -> None:
    body = {"prompt": slow(), "client_id": "c", "extra_data": {"auth_token_comfy_org": "x", "k": [1]}, "number": 3}
    found = read(json.dumps(body).encode())
    again = decode_from_journal(encode_for_journal(found), None)
    assert again.secrets == {}
    assert again.needs_secrets
    for name in ("prompt", "extra_data", "rest", "client_id", "number", "front", "models", "nodes", "files"):
        assert getattr(again, name) == getattr(found, name), name


@pytest.mark.parametrize("deadline", ["-1", "0", '"5"', "NaN", "Infinity", "true", "[1]", "1e99", "1" + "0" * 400])
def test_a_deadline_that_is_none(deadline: str) -> None:
    """400 in ComfyUI's form, which says what to do."""
    with pytest.raises(Rejection) as caught:
        read(b'{"prompt": {}, "extra_data": {"deadline_seconds": %b}}' % deadline.encode())
    assert caught.value.status == 400
    error = caught.value.body["error"]
    assert error["type"] == "invalid_deadline"
    assert "deadline_seconds must be a number" in error["message"]
    assert "leave it out" in error["details"]


@pytest.mark.parametrize(("written", "seconds"), [("5", 5.0), ("0.5", 0.5), ("null", None)])
def test_a_deadline_is_read_and_kept(written: str, seconds: float | None) -> None:
    found = read(b'{"prompt": {}, "extra_data": {"deadline_seconds": %b}}' % written.encode())
    assert found.deadline == seconds
    assert decode_from_journal(encode_for_journal(found), None).deadline == seconds


@pytest.mark.parametrize("priority", ["-1", "10", "1.0", "true", '"1"', "[]"])
def test_a_priority_that_is_none(priority: str) -> None:
    with pytest.raises(Rejection) as caught:
        read(b'{"prompt": {}, "extra_data": {"gateway_priority": %b}}' % priority.encode())
    assert caught.value.status == 400
    assert caught.value.body["error"]["type"] == "invalid_priority"


@pytest.mark.parametrize(("written", "priority"), [("0", 0), ("9", 9), ("null", 0)])
def test_a_priority_is_read_and_kept(written: str, priority: int) -> None:
    found = read(b'{"prompt": {}, "extra_data": {"gateway_priority": %b}}' % written.encode())
    assert found.priority == priority
    kept = encode_for_journal(found)
    assert decode_from_journal(kept, None).priority == priority
    # A version without priorities accepted anything there.
    odd = kept.replace(b'"gateway_priority":', b'"gateway_priority":"high","other":')
    assert decode_from_journal(odd, None).priority == 0


def test_what_an_older_version_accepted_as_a_deadline_is_none() -> None:
    kept = encode_for_journal(read(b'{"prompt": {}, "extra_data": {"deadline_seconds": 5}}'))
    assert (
        decode_from_journal(kept.replace(b'"deadline_seconds":5', b'"deadline_seconds":"soon"'), None).deadline is None
    )


def test_what_json_has_no_word_for_stays_as_it_is() -> None:
    """Older frontends save NaN; seeds may be beyond 64 bits."""
    raw = b'{"prompt": {"1": {"class_type": "A", "inputs": {"x": NaN, "seed": 123456789012345678901234567890}}}}'
    assert (
        read(raw).prompt == b'{"1": {"class_type": "A", "inputs": {"x": NaN, "seed": 123456789012345678901234567890}}}'
    )
    lone = b'{"prompt": {"1": {"class_type": "A", "inputs": {"text": "\\ud800"}}}}'
    assert b"ud800" in read(lone).prompt


def test_files_that_a_prompt_names() -> None:
    values = {
        "plain": "pic.png",
        "sub": "a/b/pic.png",
        "dots": "./a/../pic.png",
        "windows": "a\\pic.png",
        "out": "../pic.png",
        "output": "x~b2.png [output]",
        "temp": "y [temp]",
        "tight": "pic.pngX[input]",
        "model": "sub/sd.safetensors",
        "text": "no file here",
        "number": "3.5",
        "bare": "upload",
    }
    prompt = {"1": {"class_type": "LoadImage", "inputs": values}}
    submission = read(json.dumps({"prompt": prompt}).encode(), {("LoadImage", "bare")})
    files = {file.input_name: file for file in submission.files}
    assert {name: file.ref for name, file in files.items()} == {
        "plain": FileRef("input", "", "pic.png"),
        "sub": FileRef("input", "a/b", "pic.png"),
        "dots": FileRef("input", "", "pic.png"),
        "windows": FileRef("input", "a", "pic.png"),
        "out": None,
        "output": FileRef("output", "", "x~b2.png"),
        "temp": FileRef("temp", "", "y"),
        # One character before the bracket goes with it, whatever it is.
        "tight": FileRef("input", "", "pic.png"),
        "bare": FileRef("input", "", "upload"),
    }
    assert files["output"].renamed(FileRef("output", "s", "z.png")) == "s/z.png [output]"
    assert files["sub"].renamed(FileRef("input", "a/b", "pic (1).png")) == "a/b/pic (1).png"
    assert [name for name, file in files.items() if file.declared] == ["bare"]
    assert submission.separated == (("1", "model", "sub/sd.safetensors"),)
    again = decode_from_journal(encode_for_journal(submission), submission.digest)
    assert (again.files, again.model, again.workload) == (submission.files, "sub/sd.safetensors", submission.workload)


@pytest.mark.parametrize("body", [b"", b"nul", b"\xff\xfe", b"[]", b'"x"', b'{"prompt": 5}', b'{"prompt": {"1": []}}'])
def test_refusals_have_comfyuis_form(body: bytes) -> None:
    with pytest.raises(Rejection) as caught:
        read(body)
    assert caught.value.status == 400
    assert caught.value.body.keys() == {"error", "node_errors"}
    assert caught.value.body["error"].keys() == {"type", "message", "details", "extra_info"}


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_nothing_but_a_rejection_is_ever_raised(body: bytes) -> None:
    with contextlib.suppress(Rejection):
        read(body)


@given(st.dictionaries(st.sampled_from(["prompt", "prompt_id", "client_id", "extra_data", "number", "front"]), JSON))
def test_odd_values_of_known_keys(body: dict[str, Any]) -> None:
    try:
        found = read(json.dumps(body).encode())
    except Rejection:
        return
    decode_from_journal(encode_for_journal(found), found.digest)


@pytest.mark.parametrize("character", ["x", "é", "日", "\U0001f600", "\x7f"])
def test_characters_count_as_comfyui_writes_them(character: str) -> None:
    body = json.dumps({"prompt": {}, "x": character * 100}, ensure_ascii=False).encode()
    size = len(json.dumps({"prompt": {}, "x": character * 100}))
    assert json_codec.escaped_size(body) == size
    assert read(body, bounds=Bounds(bytes=size))
    if character != "x":
        with pytest.raises(Rejection) as caught:
            read(body, bounds=Bounds(bytes=size - 1))
        assert caught.value.body["error"]["type"] == "graph_too_large"


def test_long_texts_count_as_they_are_in_memory() -> None:
    """One emoji in a text makes each of its characters take four bytes."""
    for text, is_taken in (("x" * 200_000, True), ("\U0001f600" + "x" * 200_000, False)):
        body = json.dumps({"prompt": {"1": {"inputs": {"a": text}}}}, ensure_ascii=False).encode()
        assert len(body) < 210_000
        if is_taken:
            assert read(body, bounds=Bounds(bytes=210_000))
            continue
        with pytest.raises(Rejection, match="too large") as caught:
            read(body, bounds=Bounds(bytes=210_000))
        assert "memory" in caught.value.body["error"]["details"]
