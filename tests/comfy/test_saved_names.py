"""Names of saved files: the number is found where ComfyUI puts it, and another can take its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.saved_names import Saved, counted, saved

_TEXTS = st.text(max_size=8)
_TAILS = st.sampled_from(["", "_", "_.png", ".glb", "_.webm", "_mask.png", ".tar.gz", "_.safetensors"])


@pytest.mark.parametrize(
    ("filename", "parts"),
    [
        ("ComfyUI_00001_.png", ("ComfyUI", 1, "_.png")),
        ("p_00001.glb", ("p", 1, ".glb")),
        ("p_00012_.webm", ("p", 12, "_.webm")),
        ("p_00012.flac", ("p", 12, ".flac")),
        ("p_100000_.png", ("p", 100000, "_.png")),
        ("p_clip_l_00003_.safetensors", ("p_clip_l", 3, "_.safetensors")),
        ("p_20_steps_00004_.safetensors", ("p_20_steps", 4, "_.safetensors")),
        ("v1.5_00001_.png", ("v1.5", 1, "_.png")),
        # A prefix may look like a name itself: the last number counts.
        ("a_00007_00001_.png", ("a_00007", 1, "_.png")),
        ("a_00007_.png_00001_.png", ("a_00007_.png", 1, "_.png")),
        ("a__00001_.png", ("a_", 1, "_.png")),
        ("a b\n_00001_.png", ("a b\n", 1, "_.png")),
        ("_00001_.png", ("", 1, "_.png")),
        ("._00001_.png", (".", 1, "_.png")),
        ("p_00001_mask.png", ("p", 1, "_mask.png")),
        ("p_00000.png", ("p", 0, ".png")),
        ("p_00001", ("p", 1, "")),
        ("p_00001-audio.mp4", ("p", 1, "-audio.mp4")),
        ("ComfyUI_temp_abcde_00001_.png", ("ComfyUI_temp_abcde", 1, "_.png")),
    ],
)
def test_parts_of_a_name(filename: str, parts: tuple[str, int, str]) -> None:
    assert saved(filename) == Saved(*parts)


@pytest.mark.parametrize(
    "filename",
    [
        "",
        "a.png",
        "00001.png",
        "p_0001_.png",
        "p-00001_.png",
        "p_00001x.png",
        "p_00001-audio",
        "p_00001-2.png",
        "p_00001 (1).png",
        "p_٠٠٠٠١_.png",
        "preview3d_01234567-abcd-4cde-8f01-23456789abcd.glb",
        "preview3d_01234567-89ab-4cde-8f01-23456789abcd.glb",
        "sam3_track_preview_0123abcd.mp4",
        f"p_{'1' * 5000}_.png",
    ],
)
def test_names_without_a_number_are_not_counted(filename: str) -> None:
    assert saved(filename) is None
    assert counted(filename, 2) is None


@pytest.mark.parametrize(
    ("filename", "number", "new"),
    [
        ("p_00001_.png", 2, "p_00002_.png"),
        ("p_00001.glb", 12345, "p_12345.glb"),
        ("p_00001_.png", 123456, "p_123456_.png"),
        ("p_123456_.png", 7, "p_00007_.png"),
        ("p_000001_.png", 7, "p_000007_.png"),
        ("a_00007_00001_.png", 2, "a_00007_00002_.png"),
    ],
)
def test_another_number_takes_the_place(filename: str, number: int, new: str) -> None:
    assert counted(filename, number) == new


@given(_TEXTS, st.integers(0, 10**9), st.integers(0, 10**9), _TAILS)
def test_what_is_counted_reads_as_it_was_written(prefix: str, number: int, other: int, tail: str) -> None:
    filename = f"{prefix}_{number:05}{tail}"
    assert saved(filename) == Saved(prefix, number, tail)
    assert counted(filename, other) == f"{prefix}_{other:05}{tail}"
    assert counted(filename, number) == filename
