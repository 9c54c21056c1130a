"""Large prompts, read in a process apart: the same comes of them, and a process that ends takes no other with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.file_refs import FileRef
from gateway.comfy.history_files import EntryFiles
from gateway.comfy.jobs_api import job_of_history
from gateway.comfy.node_review import file_inputs
from gateway.jobs.parsing.json_reader import (
    LIGHT_BYTES,
    MAX_LIGHT_BYTES,
    MAX_LIGHT_VALUES,
    JsonReader,
    NotRead,
    is_light,
)
from gateway.jobs.state.prompt_bounds import Bounds, Rejection
from gateway.jobs.state.submission import Submission, read
from gateway.telemetry.metrics import Metrics
from tests.support.json_values import JSON
from tests.support.workflows import slow, text_to_image

BOUNDS = Bounds(nodes=50, depth=30, graph_values=2_000, body_values=4_000)
FILES = file_inputs()


class Read:
    """A reader, the loop that it runs in, and what it has counted."""

    def __init__(self, bounds: Bounds = BOUNDS, **settings: Any) -> None:
        self.metrics = Metrics()
        self.runner = asyncio.Runner()
        self.reader: JsonReader = self.runner.run(self._made(bounds, settings))

    async def _made(self, bounds: Bounds, settings: dict[str, Any]) -> JsonReader:
        return JsonReader(bounds, 2**20, self.metrics, **settings)

    def __call__(self, body: bytes, tenant: str = "ben", **more: Any) -> Submission:
        found: Submission = self.runner.run(self.of(body, tenant, **more))
        return found

    def of(self, body: bytes, tenant: str = "ben", **more: Any) -> Any:
        """Read a body, to be awaited."""
        return self.reader.read(tenant, body, FILES, **{"by_admin": False, "inspect": None, **more})

    def counted(self) -> dict[str, float]:
        """How many bodies went to a process, by outcome."""
        samples = next(iter(self.metrics.prompts_read_apart.collect())).samples
        return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}

    def close(self) -> None:
        """End it."""
        self.runner.run(self.reader.close())
        self.runner.close()


@pytest.fixture(scope="module")
def apart() -> Iterator[Read]:
    """A reader to which no body is light."""
    made = Read(is_light=lambda _: False)
    yield made
    made.close()


NAMES = ["a.png", "b/a.png [output]", "sub\\m.safetensors", "none", "x.ckpt\n", "[temp]", "a" * 5_000 + ".png"]
EXTRA = ["api_key_comfy_org", "extra_pnginfo", "deadline_seconds", "gateway_priority", "gateway_require", "webhook"]
NODES = st.dictionaries(
    st.text(max_size=4),
    st.fixed_dictionaries(
        {"class_type": st.sampled_from(["LoadImage", "CheckpointLoaderSimple", "SaveImage", "X\ud800"])},
        optional={
            "inputs": st.dictionaries(
                st.sampled_from(["image", "ckpt_name", "x", "filename_prefix"]),
                JSON
                | st.sampled_from(["a.png", "b/a.png [output]", "sub\\m.safetensors", "none", "x.ckpt\n", "[temp]"]),
            ),
            "_meta": JSON,
        },
    ),
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {"prompt": NODES | JSON},
    optional={
        "client_id": JSON,
        "prompt_id": st.uuids().map(str) | JSON,
        "number": st.floats() | JSON,
        "front": JSON,
        "extra_data": st.dictionaries(st.sampled_from(EXTRA), JSON),
        "partial_execution_targets": JSON,
        "other": JSON,
    },
)


def outcome(work: Any) -> Any:
    """Return what comes of reading: the submission, or the refusal."""
    try:
        return work()
    except Rejection as rejection:
        # NaN is not NaN, but is written the same.
        return rejection.status, json.dumps(rejection.body)


def shown(found: Any) -> Any:
    """Return a submission's fields, so that NaN equals NaN."""
    return repr(found)


@given(BODIES | JSON, st.booleans())
def test_the_same_comes_of_it_in_a_process_apart(apart: Read, value: Any, by_admin: bool) -> None:
    body = json.dumps(value).encode()
    here = outcome(lambda: read(body, FILES, BOUNDS, by_admin=by_admin))
    there = outcome(lambda: apart(body, by_admin=by_admin))
    assert shown(there) == shown(here)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b'{"prompt": ' + b"9" * 5_000 + b"}", b"[]," * 9_000])
def test_the_same_refusal_comes_of_it(apart: Read, body: bytes) -> None:
    before = apart.counted().get("refused", 0)
    here = outcome(lambda: read(body, FILES, BOUNDS))
    assert isinstance(here, tuple)
    assert outcome(lambda: apart(body)) == here
    assert apart.counted()["refused"] == before + 1


def test_a_judgement_is_made_here(apart: Read) -> None:
    """What judges knows the fleet, which the process does not."""
    seen: list[Any] = []

    def inspect(graph: Any, _: bool) -> int:
        seen.append(graph)
        return 7

    found = apart(json.dumps({"prompt": text_to_image()}).encode(), inspect=inspect)
    assert (found.judgement, seen) == (7, [text_to_image()])


@pytest.mark.parametrize("value", ["NaN", "99999999999999999999", '"\\ud800"'])
def test_what_only_python_can_say_is_short(value: str) -> None:
    """It takes ten times as long, and three times the room."""
    maximum = Bounds()
    for size in (2**19, 2**20):
        body = b'{"prompt": {}, "x": [%b, "%b"]}' % (value.encode(), b"y" * size)
        if size < 2**20:
            assert not read(body, bounds=maximum).is_plain
            continue
        with pytest.raises(Rejection) as caught:
            read(body, bounds=maximum)
        assert caught.value.body["error"]["type"] == "graph_too_large"
        assert "NaN" in caught.value.body["error"]["details"]


def test_many_digits_in_a_long_text() -> None:
    found = read(b'{"prompt": {}, "x": "%b"}' % (b"9" * 2**20))
    assert found.is_plain


def test_a_job_is_shown_the_same_in_a_process_apart() -> None:
    made = Read()
    entry = {
        "prompt": [3, "id", slow(), {"create_time": 5, "noise": "x" * MAX_LIGHT_BYTES}, ["1"]],
        "outputs": {"1": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}},
        "status": {"status_str": "success", "completed": True, "messages": []},
    }
    shown = made.runner.run(made.reader.show_job("ben", "id", json.dumps(entry).encode()))
    assert json.loads(shown) == job_of_history("id", entry, include_outputs=True)
    assert made.reader.pids
    # The same process finds the files of an entry.
    files = made.runner.run(made.reader.files_of("ben", json.dumps(entry).encode(), FILES, 10))
    assert files == EntryFiles((FileRef("output", "", "a.png"),), ())
    entry["prompt"][3]["noise"] = ""  # type: ignore[index]
    shown = made.runner.run(made.reader.show_job("ben", "id", json.dumps(entry).encode()))
    assert json.loads(shown) == job_of_history("id", entry, include_outputs=True)
    made.close()


def test_which_bodies_are_light() -> None:
    assert is_light(b"," * LIGHT_BYTES)
    assert not is_light(b"," * (LIGHT_BYTES + 1))
    assert is_light(b"x" * (MAX_LIGHT_BYTES - MAX_LIGHT_VALUES) + b"," * MAX_LIGHT_VALUES)
    assert not is_light(b"x" * (MAX_LIGHT_BYTES - MAX_LIGHT_VALUES - 1) + b"[" * (MAX_LIGHT_VALUES + 1))
    assert not is_light(b"x" * (MAX_LIGHT_BYTES + 1))


def test_a_light_body_needs_no_process() -> None:
    made = Read()
    made(json.dumps({"prompt": slow()}).encode())
    assert made.reader.pids == []
    assert made.counted() == {}
    made.close()


def test_a_killed_process_is_replaced(apart: Read) -> None:
    """Whose body it reads is told to try again; who comes later hears nothing of it."""
    body = json.dumps({"prompt": slow(), "x": "y" * 2**19}).encode()
    apart(body)
    first = apart.reader.pids
    for pid in first:
        os.kill(pid, signal.SIGSTOP)

    async def killed() -> None:
        reading = asyncio.ensure_future(apart.of(body))
        await asyncio.sleep(0)
        assert apart.reader._busy
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(NotRead, match="has ended"):
            await reading

    apart.runner.run(killed())
    assert apart(body) == read(body, FILES, BOUNDS)
    assert not set(first) & set(apart.reader.pids)
    assert apart.counted()["failed"] == 1


def test_an_idle_process_that_was_killed_is_nobodys_loss(apart: Read) -> None:
    body = json.dumps({"prompt": slow()}).encode()
    apart(body)
    before = apart.counted()

    async def kill() -> None:
        for process in list(apart.reader._idle):
            assert process._process is not None
            process._process.kill()
            await process._process.wait()

    apart.runner.run(kill())
    assert apart(body) == read(body, FILES, BOUNDS)
    assert apart.counted() == {**before, "read": before["read"] + 1}


def test_who_goes_away_takes_the_process_along(apart: Read) -> None:
    """Half a body in it would be read as the next one's."""
    body = json.dumps({"prompt": slow(), "x": "y" * 2**20}).encode()

    async def cancelled() -> None:
        reading = asyncio.ensure_future(apart.of(body))
        await asyncio.sleep(0)
        assert apart.reader._busy
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    apart.runner.run(cancelled())
    assert apart(body) == read(body, FILES, BOUNDS)


def test_one_that_takes_too_long_is_ended() -> None:
    made = Read(seconds=0.0, is_light=lambda _: False)
    with pytest.raises(NotRead, match="longer than 0 s"):
        made(b"{}")
    assert made.counted() == {"failed": 1}
    made.close()


def test_more_memory_than_there_is() -> None:
    """The body is refused, and the process serves the next one."""
    made = Read(bounds=Bounds(), memory=200 * 2**20)
    large = json.dumps({"prompt": slow(), "x": ["\U0001f600" + "y" * 2**25]}, ensure_ascii=False).encode()
    with pytest.raises((Rejection, NotRead)) as caught:
        made(large)
    if isinstance(caught.value, Rejection):
        assert (caught.value.status, caught.value.body["error"]["type"]) == (413, "prompt_too_large")
    small = json.dumps({"prompt": slow(), "x": "y" * 2**19}).encode()
    assert made(small) == read(small, FILES)
    made.close()


def test_a_tenants_bodies_are_read_one_at_a_time(apart: Read) -> None:
    """So there is a process for the next tenant, however many bodies the first one sends."""
    body = json.dumps({"prompt": slow(), "x": "y" * 2**19}).encode()
    maximum: list[int] = []

    async def many() -> None:
        reading = [asyncio.ensure_future(apart.of(body)) for _ in range(5)]
        other = asyncio.ensure_future(apart.of(body, "anna"))
        while not all(task.done() for task in (*reading, other)):
            maximum.append(len(apart.reader._busy))
            await asyncio.sleep(0)
        await asyncio.gather(*reading, other)

    apart.runner.run(many())
    assert max(maximum) == 2


def test_a_process_ends_with_its_reader() -> None:
    made = Read(bounds=Bounds())
    made(json.dumps({"prompt": slow(), "x": "y" * 2**19}).encode())
    (pid,) = made.reader.pids
    made.close()
    assert not Path(f"/proc/{pid}").exists()


def test_the_process_loads_no_settings() -> None:
    """It starts while a client waits for its answer, and pydantic would make the start longer."""
    code = (
        "import sys; from gateway.jobs.parsing import reader_process; print({'pydantic', 'yaml'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
