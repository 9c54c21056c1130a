"""Files that a path may mean which leads out of its folder."""

from __future__ import annotations

import pytest

from gateway.comfy.file_refs import FileRef, leads_to


@pytest.mark.parametrize(
    "value",
    [
        "../input/a/pic.png",
        "../input/x/../a/pic.png [output]",
        "/base/input/a/pic.png",
        r"C:\base\input\a\pic.png",
    ],
)
def test_each_end_of_a_path_may_be_the_file(value: str) -> None:
    found = leads_to(value)
    assert {FileRef("input", "a", "pic.png"), FileRef("output", "a", "pic.png"), FileRef("temp", "", "pic.png")} <= {
        *found
    }


@pytest.mark.parametrize("value", ["", "../\0", "/", "x" * 5_000 + "/y [input]", "\ud800"])
def test_what_is_no_path_leads_to_nothing(value: str) -> None:
    assert [ref for ref in leads_to(value) if ref.filename not in (".", "..")] == []


def test_a_long_path_gives_few_files() -> None:
    assert len(leads_to("../" * 500 + "x/" * 500 + "pic.png")) <= 48
