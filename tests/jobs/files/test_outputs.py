"""What a job's nodes put out."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.comfy.file_refs import FileRef
from gateway.files.identity import MAX_FILES
from gateway.jobs.files.entry_files import each_file, file_steps


def test_of_a_million_files_that_a_node_tells_of_most_keep_their_names() -> None:
    """Each costs memory for ever, a row, and a question to the backend, whether it is there or not."""
    asked: list[str] = []

    def name(ref: FileRef, is_made: bool, node_id: str) -> FileRef:
        asked.append(node_id)
        return FileRef(ref.kind, ref.subfolder, "x")

    half = {"images": [{"filename": "a.png"}] * (MAX_FILES // 2 + 1)}
    renamed = each_file({"1": half, "2": half}, name)
    assert (asked.count("1"), asked.count("2")) == (MAX_FILES // 2 + 1, MAX_FILES // 2 - 1)
    assert [file["filename"] for file in renamed["2"]["images"][-3:]] == ["x", "a.png", "a.png"]


@pytest.mark.parametrize(
    "output",
    [
        {"images": [{"filename": f"{n}.png"} for n in range(1_000)]},
        {"3d": [f"{n}.glb" for n in range(1_000)]},
        {str(n): [f"{n}.glb"] for n in range(1_000)},
        {"images": [{"filename": "a.png", **{str(n): f"{n}.png" for n in range(1_000)}}]},
        {"a": [[[f"{n}.glb"] for n in range(30)] for _ in range(33)]},
    ],
)
def test_many_files_are_named_in_short_steps(output: Any) -> None:
    """Others have their turn between two steps (`gateway.telemetry.tasks.in_turns`)."""
    named = 0

    def name(ref: FileRef, is_made: bool, node_id: str) -> FileRef:
        nonlocal named
        named += 1
        return FileRef(ref.kind, ref.subfolder, f"x{ref.filename}")

    before, maximum = 0, 0
    for _ in file_steps({"1": output}, name):
        before, maximum = named, max(maximum, named - before)
    assert named >= 990
    assert max(maximum, named - before) <= 64
