"""Files of a history entry: made by the prompt, or only named."""

from __future__ import annotations

from typing import Any

from gateway.comfy.file_refs import FileRef
from gateway.comfy.history_files import EntryFiles, files_of_entry

FILES = {("LoadImage", "image")}


def entry(outputs: Any, graph: Any) -> dict[str, Any]:
    return {"prompt": [1, "id", graph, {}, []], "outputs": outputs}


def test_what_a_prompt_made_and_what_it_named() -> None:
    outputs = {
        "1": {"images": [{"filename": "a.png", "subfolder": "x", "type": "output"}] * 2},
        "2": {"images": [{"filename": "t.png", "subfolder": "", "type": "temp"}]},
        # An input is shown, and an earlier job's model is repeated by its name: neither was made.
        "3": {"audio": [{"filename": "in.flac", "subfolder": "", "type": "input"}], "result": ["earlier.glb"]},
    }
    graph = {
        "4": {"class_type": "LoadImage", "inputs": {"image": "p/in"}},
        "5": {"class_type": "X", "inputs": {"n": 1}},
    }
    found = files_of_entry(entry(outputs, graph), FILES, 10)
    made = (FileRef("output", "x", "a.png"), FileRef("temp", "", "t.png"))
    assert found == EntryFiles(made, (FileRef("input", "p", "in"),))
    assert files_of_entry(entry(outputs, graph), FILES, 1).made == made[:1]


def test_an_entry_of_another_form_has_none() -> None:
    for odd in ([], {}, entry([], []), entry({"1": None}, None), {"prompt": [1]}):
        assert files_of_entry(odd, FILES, 10) == EntryFiles((), ())
