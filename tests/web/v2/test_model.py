"""Objects of the Comfy API v2, progress, events, ranges, lists: the pure parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from gateway.comfy.events import Event
from gateway.jobs.state.job import LastPreview
from gateway.jobs.state.progress import Progress
from gateway.web.http.v2_errors import V2Error, is_v2
from gateway.web.v2.content import range_of
from gateway.web.v2.events import MAX_FRAME, Told
from gateway.web.v2.job_routes import wait_of
from gateway.web.v2.listing import JOBS_AT_ONCE, Key, cursor_of, newest, query_of
from gateway.web.v2.model import JobView, Links, SizedOutput, job_object, making_outputs, position_in
from gateway.web.v2.outputs import outputs_of
from gateway.web.v2.progress import progress_of
from gateway.web.v2.table import methods_of

JOB = "722f03dd-788b-4385-a0c2-d138ca2384fe"
NODES = (("1", "KSampler"), ("2", "SaveImage"))
LINKS = Links("http://a.example")


def told(*events: tuple[str, dict[str, Any]]) -> Progress:
    """The progress of a job by these events."""
    progress = Progress()
    for type_, data in events:
        progress.repeats(Event(type_, data, None, b""))
    return progress


def test_progress_by_states_and_by_steps() -> None:
    nothing = progress_of(None, NODES, None, None)
    assert (nothing["value"], nothing["nodes_done"], nothing["nodes_total"], nothing["step"]) == (0.0, 0, 2, None)
    half = told(("progress_state", {"nodes": {"1": {"state": "running", "value": 5, "max": 10}}}))
    shown = progress_of(half, NODES, None, "1")
    assert (shown["value"], shown["nodes_done"]) == (0.25, 0)
    assert (shown["current_node"], shown["current_node_class"], shown["step"], shown["steps"]) == (
        "1",
        "KSampler",
        5,
        10,
    )
    done = told(("progress_state", {"nodes": {"1": {"state": "finished"}, "9.1": {"state": "running"}}}))
    shown = progress_of(done, NODES, None, None)
    assert (shown["value"], shown["nodes_done"], shown["current_node"]) == (0.5, 1, None)
    # An older ComfyUI tells of steps alone.
    old = told(("executing", {"node": "1"}), ("progress", {"node": "1", "value": 3, "max": 4}))
    shown = progress_of(old, NODES, None, "1")
    assert (shown["value"], shown["step"], shown["steps"]) == (0.375, 3, 4)
    assert progress_of(None, NODES, {"1", "2", "x"}, None)["value"] == 1.0


@given(st.dictionaries(st.sampled_from(["1", "2", "x"]), st.one_of(
    st.none(),
    st.fixed_dictionaries({"state": st.sampled_from(["running", "finished", "pending", 5]),
                           "value": st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=2)),
                           "max": st.one_of(st.none(), st.integers(), st.floats(), st.booleans())}))))  # fmt: skip
def test_no_state_of_a_backend_breaks_the_progress(states: dict[str, Any]) -> None:
    shown = progress_of(told(("progress_state", {"nodes": states})), NODES, None, "2")
    assert 0 <= shown["value"] <= 1
    assert 0 <= shown["nodes_done"] <= shown["nodes_total"] == 2
    json.dumps(shown, allow_nan=False)


def test_times_do_not_run_backwards() -> None:
    view = JobView(JOB, "succeeded", 5_000, 99_000, started=4_000, ended=1_000)
    shown = job_object(view, LINKS, 0)
    assert shown["created_at"] == shown["started_at"] == shown["completed_at"] == "1970-01-01T00:00:05.000+00:00"
    assert shown["metrics"] == {"queue_ms": 0, "execution_ms": 0}
    assert position_in(3, [1, 5, 2.5]) == 3


def outputs() -> list[SizedOutput]:
    """Two outputs."""
    return [SizedOutput(each, 5) for each in outputs_of(JOB, {"1": {"text": ["a", "b"]}})]


def names(frames: list[bytes]) -> list[str]:
    """The names of frames."""
    return [frame.split(b"\n")[0].removeprefix(b"event: ").decode() for frame in frames]


def test_a_stream_is_told_each_change_once_and_the_end_last() -> None:
    stream, preview = Told(), LastPreview("1", "image/png", b"head" + b"x" * 9, 4)
    queued = JobView(JOB, "queued", 0, 0, position=2)
    running = JobView(JOB, "running", 0, 0, progress={"value": 0.5}, outputs=outputs()[:1])
    over = JobView(JOB, "succeeded", 0, 0, outputs=outputs())
    assert names(list(stream.news(queued, None, LINKS, 0))) == ["status"]
    assert names(list(stream.news(queued, None, LINKS, 0))) == []
    first = list(stream.news(running, preview, LINKS, 0))
    assert names(first) == ["status", "progress", "preview", "output"]
    assert b'"data_base64":"eHh4eHh4eHh4"' in first[2]
    assert names(list(stream.news(running, preview, LINKS, 0))) == []
    last = list(stream.news(over, None, LINKS, 0))
    assert names(last) == ["output", "status"]
    assert last[-1] == b'event: status\ndata: {"status":"succeeded"}\n\n'


def test_a_stream_tells_many_outputs_in_parts_and_the_end_last() -> None:
    texts = outputs_of(JOB, {"1": {"text": ["x"] * 450}})
    over, stream = JobView(JOB, "succeeded", 0, 0, outputs=[SizedOutput(each, 1) for each in texts]), Told()
    assert len(list(making_outputs(over, LINKS, 0))) >= 4
    parts = []
    while not parts or stream.has_more:
        parts.append(names(list(stream.news(over, None, LINKS, 0))))
    assert [len(part) for part in parts] == [200, 200, 51]
    assert [name for part in parts for name in part] == ["output"] * 450 + ["status"]


def test_no_frame_is_too_large() -> None:
    running = JobView(JOB, "running", 0, 0)
    for size, expected in ((1_400_000, 2), (1_600_000, 1)):
        found = list(Told().news(running, LastPreview("1", "image/png", b"x" * size, 0), LINKS, 0))
        assert len(found) == expected
        assert max(map(len, found)) <= MAX_FRAME


def test_a_stream_of_an_ended_job_remembers_no_outputs() -> None:
    """It remembered the id of each, so that a thousand slow readers of 10,000 outputs held 1 GB."""
    outputs = [SizedOutput(each, 1) for each in outputs_of(JOB, {"1": {"text": [str(n) for n in range(450)]}})]
    stream, events = Told(), []
    for view in (
        JobView(JOB, "running", 0, 0, outputs=outputs[100:110]),
        *[JobView(JOB, "succeeded", 0, 0, outputs=outputs)] * 3,
    ):
        found = list(stream.news(view, None, LINKS, 0))
        events += [json.loads(each.partition(b"data: ")[2]) for each in found]
        assert len(found) <= 201
    ids = [each["id"] for each in events if "id" in each]
    assert sorted(ids) == sorted(each.output.id for each in outputs)
    assert (events[-1], stream.has_more) == ({"status": "succeeded"}, False)
    assert len(stream._outputs) == 10


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, None),
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("Bytes = 1 - 1", (1, 2)),
        ("bytes=50-1000", (50, 100)),
        ("bytes=100-", "416"),
        ("bytes=5-2", "416"),
        ("bytes=-0", "416"),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=-", None),
        ("bytes=x-", None),
        ("bytes=" + "9" * 30 + "-", None),
    ],
)
def test_ranges(given_: str | None, expected: object) -> None:
    if expected == "416":
        with pytest.raises(V2Error) as caught:
            range_of(given_, 100)
        assert (caught.value.status, caught.value.headers["Content-Range"]) == (416, "bytes */100")
    else:
        assert range_of(given_, 100) == expected


def test_an_empty_file_has_no_range() -> None:
    for given_ in ("bytes=0-", "bytes=-1"):
        with pytest.raises(V2Error):
            range_of(given_, 0)


def test_a_cursor_is_read_again() -> None:
    query = query_of(
        MultiDict({"cursor": cursor_of(1_795_000_000_000, JOB), "metadata[a.b]": "c", "status": "failed,,"})
    )
    assert query.after == (1_795_000_000_000, JOB)
    assert (query.limit, query.labels, query.statuses) == (50, {"a.b": "c"}, {"failed"})
    for cursor in ("abc", "!", "x" * 999, cursor_of(1, "no-id"), "/w"):
        with pytest.raises(V2Error, match="cursor"):
            query_of(MultiDict({"cursor": cursor}))


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        ((), None),
        (("respond-async",), None),
        (("wait=5",), 5.0),
        (("respond-async, WAIT = 7",), 7.0),
        (("respond-async", 'wait="9"; x=1'), 9.0),
        (("wait=999",), 60.0),
        (("wait=-1",), None),
        (("nowait=5",), None),
        (("wait=5x",), None),
    ],
)
def test_preferences(preferences: tuple[str, ...], expected: float | None) -> None:
    assert wait_of(preferences, 60.0) == expected


def test_paths_of_the_api() -> None:
    for path in ("/api/v2", "/api/v2/", "/api/v2/jobs", "/api/v2/x/userdata", "/api/v2/userdatas"):
        assert is_v2(path), path
    for path in ("/api/v2/userdata", "/api/v2/userdata/x", "/api/v2/manager/queue", "/v2/jobs", "/api/v22", "/api"):
        assert not is_v2(path), path
    assert methods_of("/api/v2/assets/from-hash") == ["POST"]
    assert methods_of("/api/v2/assets/x/content") == ["GET", "HEAD"]
    assert methods_of("/api/v2/assets/x/y") == []


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(1, 8))
def test_the_newest_jobs_are_found_in_steps(parts: list[tuple[int, bool]], count: int) -> None:
    """As if all were sorted; no step looks at more than it may."""
    jobs = [((created, str(n), "t"), n, is_wanted) for n, (created, is_wanted) in enumerate(parts * JOBS_AT_ONCE)]
    jobs = jobs[: 3 * JOBS_AT_ONCE]
    read = 0

    def reading() -> Iterator[tuple[Key, int] | None]:
        nonlocal read
        for key, value, is_wanted in jobs:
            read += 1
            yield (key, value) if is_wanted else None

    steps, before = newest(reading(), count), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
            break
        assert read - before <= JOBS_AT_ONCE
        before = read
    assert found == sorted(((key, value) for key, value, is_wanted in jobs if is_wanted), reverse=True)[:count]
