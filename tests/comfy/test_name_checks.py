"""Prefixes and folders of savers stay in the output folder, and out of the folders of models."""

from __future__ import annotations

import pytest

from gateway.comfy.name_checks import wrong_with_file_part, wrong_with_prefix


@pytest.mark.parametrize(
    "prefix",
    [
        "ComfyUI",
        "my/folder/pic",
        "a/../b",
        "./x",
        "",
        "%date:yyyy-MM-dd%/%width%",
        "loras",
        "my/loras/x",
        "video/ComfyUI",
        "a...b/c",
        7,
        None,
    ],
)
def test_names_inside_pass(prefix: object) -> None:
    assert wrong_with_prefix(prefix) is None


@pytest.mark.parametrize(
    "prefix",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "\\\\host\\share",
        "..\\x",
        "C:/x",
        "a/D:x",
        "a\\d:\\x",
        "c:x",
        ".. /x",
        "a/.. /../x",
        "a\0b",
        "x" * 5000,
        "loras/x",
        "LORAS/x",
        "./loras/x",
        "a/../loras/x",
        "loras./x",
        "checkpoints\\x",
        ["x"],
        {"x": "y"},
    ],
)
def test_names_that_lead_elsewhere_are_refused(prefix: object) -> None:
    assert wrong_with_prefix(prefix) is not None


@pytest.mark.parametrize("part", ["mp4", "auto", 7, 0.5, True, None])
def test_parts_of_names_pass(part: object) -> None:
    assert wrong_with_file_part(part) is None


@pytest.mark.parametrize("part", ["a/b", "..", "a\\b", "c:d", "a\0", ["x"], "x" * 5000])
def test_parts_that_make_a_path_are_refused(part: object) -> None:
    assert wrong_with_file_part(part) is not None


def test_a_prefix_names_a_hundred_folders_at_most() -> None:
    assert wrong_with_prefix("a/" * 100 + "x") is None
    assert wrong_with_prefix("a/" * 101 + "x") is not None
    assert wrong_with_prefix("a\\" * 101 + "x") is not None


@pytest.mark.parametrize("prefix", ["", ".", "annao/", "annao/.", "annao//", "x/../annao/", "annao\\", "a%batch_num%"])
def test_a_prefix_may_count_from_one_again(prefix: str) -> None:
    """What it replaces is the tenant's own: each saver writes into a secret folder."""
    assert wrong_with_prefix(prefix) is None
