"""What a job's nodes put out."""

from __future__ import annotations

from gateway.comfy.outputs import FileRef
from gateway.fleet.etags import MOST
from gateway.jobs.entry_files import each_file


def test_of_a_million_files_that_a_node_tells_of_most_keep_their_names() -> None:
    """Each costs memory for ever, a row, and a question to the backend, whether it is there or not."""
    asked: list[str] = []

    def name(ref: FileRef, is_made: bool, node_id: str) -> FileRef:
        asked.append(node_id)
        return FileRef(ref.kind, ref.subfolder, "x")

    half = {"images": [{"filename": "a.png"}] * (MOST // 2 + 1)}
    renamed = each_file({"1": half, "2": half}, name)
    assert (asked.count("1"), asked.count("2")) == (MOST // 2 + 1, MOST // 2 - 1)
    assert [file["filename"] for file in renamed["2"]["images"][-3:]] == ["x", "a.png", "a.png"]
