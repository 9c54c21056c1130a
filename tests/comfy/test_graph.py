"""What in a graph may be a file's name."""

from __future__ import annotations

import pytest

from gateway.comfy.graph import survey, texts


@pytest.mark.parametrize("text", ["cat.png", "below/cat.PNG", "scan.3mf", "old.7z", "name [output]", "v1.5.png"])
def test_a_text_that_may_be_a_file(text: str) -> None:
    (file,) = survey({"1": {"class_type": "Any", "inputs": {"x": text}}}).files
    assert file.value == text


@pytest.mark.parametrize(
    "text", ["v1.5", "2024.11", "a cat.", "no dot", "", "see e.g. this sentence", "x.superlongsuffix"]
)
def test_a_text_that_is_a_text(text: str) -> None:
    assert survey({"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": text}}}).files == ()


def test_where_an_input_is_known_to_be_a_file_anything_is() -> None:
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "v1.5"}}}
    assert [file.value for file in survey(prompt, {("LoadImage", "image")}).files] == ["v1.5"]


def test_texts_are_found_with_what_leads_to_them() -> None:
    value = {"a": ["x", {"b": "y"}, 5, [], ["z"]], "c": None, "d": "w"}
    assert list(texts(value)) == [
        (("a", 0), "x"),
        (("a", 1, "b"), "y"),
        (("a", 4, 0), "z"),
        (("d",), "w"),
    ]
    assert list(texts("x")) == [((), "x")]
    assert list(texts(5)) == []
