"""Bodies of events: they fit the schema and 20 KB, whatever a node or a client wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.comfy.history import failure_event, interruption_event
from gateway.jobs.state.job import Job
from gateway.jobs.state.job_end import End
from gateway.jobs.state.prompt_webhook import MAX_METADATA
from gateway.jobs.state.submission import decode_from_journal, encode_for_journal, read
from gateway.webhooks.model import MAX_PAYLOAD, OF_BACKENDS, EventType
from gateway.webhooks.payload import (
    MAX_OUTPUTS,
    backend_payload,
    job_payload,
    outputs_of,
    test_payload,
    type_of_end,
    without_content,
)
from tests.support.workflows import slow

# It is no test.
made_test_payload = test_payload
del test_payload

CHECK = jsonschema_rs.validator_for(
    json.loads((Path(__file__).parents[2] / "docs" / "webhook-events.schema.json").read_text())
)
PROMPT_ID = "6f1c1e0e-3a55-4c7c-9d0b-0d4a6f0f2b11"
NOW = 1_700_000_010.5


def job(**extra: Any) -> Job:
    """A job that ran."""
    body = {"prompt": slow(), "prompt_id": PROMPT_ID, "extra_data": extra}
    made = Job("t", PROMPT_ID, 1.0, 1.0, read(json.dumps(body).encode()), 1_700_000_000_000, 0.0)
    made.start_time = 1_700_000_001_000
    return made


def data_of(body: bytes) -> dict[str, Any]:
    """The data of an event that is fit to be sent."""
    assert len(body) <= MAX_PAYLOAD
    event: dict[str, Any] = json.loads(body)
    CHECK.validate(event)
    data: dict[str, Any] = event["data"]
    return data


def image(n: int, **more: str) -> dict[str, str]:
    """A file of an output."""
    return {"filename": f"a b{n}.png", "subfolder": "s", "type": "output", **more}


def test_a_success_tells_its_outputs_times_and_metadata() -> None:
    outputs = {"9": {"images": [image(1), image(2, type="temp"), image(1), image(3, type="input")], "text": ["x"]}}
    entry = {"outputs": outputs, "status": {"status_str": "success", "messages": []}}
    end = End("success", entry, size_of=lambda ref: 2**40 if ref.kind == "temp" else None)
    made = job(metadata={"order": [1, "ä"]}, extra_pnginfo={"workflow": {"id": "w", "metadata": 5}})
    data = data_of(job_payload(EventType.JOB_SUCCEEDED, made, NOW, end, "https://comfy.example"))
    assert data == {
        "version": "2026-11-01",
        "prompt_id": PROMPT_ID,
        "status": "succeeded",
        "accepted_at": "2023-11-14T22:13:20.000Z",
        "started_at": "2023-11-14T22:13:21.000Z",
        "ended_at": "2023-11-14T22:13:30.500Z",
        "error": None,
        "outputs": [
            {
                "filename": f"a b{n}.png",
                "subfolder": "s",
                "type": kind,
                "node_id": "9",
                "bytes": 2**40 if kind == "temp" else None,
                "url": f"https://comfy.example/view?filename=a+b{n}.png&subfolder=s&type={kind}",
            }
            for n, kind in ((1, "output"), (2, "temp"))
        ],
        "outputs_left_out": 0,
        "job_url": f"https://comfy.example/api/jobs/{PROMPT_ID}",
        "metadata": {"order": [1, "ä"]},
    }


def test_a_failure_tells_its_error_and_its_node() -> None:
    error = failure_event("up", "CUDA error: out of memory\n" + "x" * 9_000, "OutOfMemoryError")
    error |= {"node_id": "3", "node_type": "KSampler"}
    status = {"status_str": "error", "messages": [["execution_start", {}], ["execution_error", error]]}
    data = data_of(job_payload(EventType.JOB_FAILED, job(), NOW, End("error", {"outputs": {}, "status": status})))
    assert (data["error"]["type"], data["error"]["node_id"], data["error"]["node_type"]) == (
        "OutOfMemoryError",
        "3",
        "KSampler",
    )
    assert data["error"]["message"].startswith("CUDA error: out of memory\nxxx")
    assert data["metadata"] is None


def test_a_deleted_jobs_event_tells_nothing_of_its_content() -> None:
    error = failure_event("up", "hunter2", "OutOfMemoryError") | {"node_id": "3"}
    entry = {
        "outputs": {"9": {"images": [image(1, filename="hunter2.png")]}},
        "status": {"messages": [["execution_error", error]]},
    }
    body = job_payload(EventType.JOB_FAILED, job(metadata="hunter2"), NOW, End("error", entry))
    assert body.count(b"hunter2") == 4
    less = without_content(body)
    data = data_of(less)
    assert b"hunter2" not in less
    assert (data["prompt_id"], data["status"], data["outputs_left_out"]) == (PROMPT_ID, "failed", 1)
    assert data["error"]["type"] == "OutOfMemoryError"
    assert data_of(without_content(job_payload(EventType.JOB_QUEUED, job(), NOW)))["status"] == "queued"


def test_other_events() -> None:
    cancelled = {"status": {"messages": [["execution_interrupted", interruption_event("up")]]}}
    assert data_of(job_payload(EventType.JOB_CANCELLED, job(), NOW, End("cancelled", cancelled)))["error"] is None
    waiting = job()
    waiting.start_time = None
    data = data_of(job_payload(EventType.JOB_CANCELLED, waiting, NOW, End("cancelled")))
    assert (data["started_at"], data["ended_at"]) == (None, "2023-11-14T22:13:30.500Z")
    data = data_of(job_payload(EventType.JOB_QUEUED, waiting, NOW))
    assert (data["status"], data["started_at"], data["ended_at"]) == ("queued", None, None)
    assert data_of(job_payload(EventType.JOB_STARTED, job(), NOW))["status"] == "running"
    for type_ in OF_BACKENDS:
        assert data_of(backend_payload(type_, "gpu0", NOW))["backend"] == "gpu0"
    assert data_of(made_test_payload("we_1", NOW))["endpoint_id"] == "we_1"
    assert {type_of_end(outcome) for outcome in ("success", "error", "cancelled")} == {
        EventType.JOB_SUCCEEDED,
        EventType.JOB_FAILED,
        EventType.JOB_CANCELLED,
    }


def test_outputs_past_the_maximum_and_past_the_room_are_counted() -> None:
    many = {str(n): {"images": [image(n)]} for n in range(MAX_OUTPUTS + 7)}
    files, left_out = outputs_of(many, "", 10**9)
    assert (len(files), left_out) == (MAX_OUTPUTS, 7)
    long = {"9": {"images": [image(n, filename="é" * 3_000 + str(n)) for n in range(9)]}}
    data = data_of(job_payload(EventType.JOB_SUCCEEDED, job(), NOW, End("success", {"outputs": long})))
    assert len(data["outputs"]) + data["outputs_left_out"] == 9
    assert data["outputs_left_out"] > 0


def test_longer_ids_and_words_never_make_a_body_too_long() -> None:
    outputs = {"9": {"images": [image(n, subfolder="up" * 60) for n in range(60)]}}
    end = End("success", {"outputs": outputs}, lambda said: said.replace(b"up", b"longer" * 9))
    data = data_of(job_payload(EventType.JOB_SUCCEEDED, job(metadata=1), NOW, end))
    assert (data["outputs"], data["outputs_left_out"]) == ([], 60)


@pytest.mark.parametrize(
    ("extra_data", "metadata"),
    [
        ({}, None),
        ({"metadata": {"a": [1, None]}}, {"a": [1, None]}),
        ({"metadata": None}, None),
        ({"a": {"metadata": 1}, "b": '"metadata"'}, None),
        ({"metadata": "x" * (MAX_METADATA - 2)}, "x" * (MAX_METADATA - 2)),
        ({"metadata": "x" * MAX_METADATA}, None),
        ({"metadata": "é" * (MAX_METADATA - 2)}, None),
        ({"metadata": {"order": 1}, "extra_pnginfo": {"workflow": "x" * 3_000_000}}, {"order": 1}),
        ({"metadata": float("nan")}, None),
        ({"metadata": "\ud800"}, "\ud800"),
    ],
)
def test_metadata(extra_data: dict[str, Any], metadata: Any) -> None:
    """An event has it however large extra_data is, also after a restart; so do /queue and /history, unchanged."""
    made = job(**extra_data)
    submission = made.submission
    again = decode_from_journal(encode_for_journal(submission), submission.digest)
    shown = json.loads(submission.extra_data)
    assert str(shown) == str(extra_data)
    for each in (made, replace(made, submission=again)):
        data = data_of(job_payload(EventType.JOB_FAILED, each, NOW, End("error")))
        assert data["metadata"] == metadata
        assert each.submission.metadata == submission.metadata
        assert each.submission.more_bytes == len(submission.metadata)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
ODD = st.text(st.characters(codec=None), max_size=3_000)
FILES = st.fixed_dictionaries({"filename": ODD | JSON}, optional={"subfolder": ODD | JSON, "type": ODD | JSON})
OUTPUTS = st.dictionaries(ODD, st.dictionaries(ODD, st.lists(FILES | JSON, max_size=9) | JSON, max_size=3), max_size=3)
ERRORS = st.fixed_dictionaries(
    {"exception_type": ODD | JSON}, optional={"exception_message": ODD | JSON, "node_id": JSON, "node_type": ODD | JSON}
)


@settings(max_examples=50)
@given(OUTPUTS | JSON, st.lists(st.tuples(st.just("execution_interrupted"), ERRORS), max_size=2), JSON)
def test_whatever_a_node_wrote(outputs: Any, messages: list[Any], metadata: Any) -> None:
    status = {"status_str": "error", "messages": [list(each) for each in messages]}
    end = End("cancelled", {"outputs": outputs, "status": status})
    data_of(job_payload(EventType.JOB_CANCELLED, job(metadata=metadata), NOW, end))


def test_a_type_that_no_request_may_name_is_no_output() -> None:
    """A node may write any text there. One that can't be encoded would break the end of its job."""
    types = ("output", "temp", "input", "\ud800", "x" * 30_000, "")
    images = [{"filename": f"{n}.png", "subfolder": "", "type": type_} for n, type_ in enumerate(types)]
    files, left_out = outputs_of({"9": {"images": images}}, "", 10_000)
    assert ([each["filename"] for each in files], left_out) == (["0.png", "1.png"], 0)
