"""Frames of clients, counted before anything is made of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.intake import FrameCounter


def frame(size: int, *, is_masked: bool) -> bytes:
    """A frame of a client; one that is not masked is none, and is counted all the same."""
    mask = 0x80 if is_masked else 0
    if size < 126:
        head = bytes([0x82, mask | size])
    elif size < 2**16:
        head = bytes([0x82, mask | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x82, mask | 127]) + size.to_bytes(8, "big")
    return head + (b"mask" if is_masked else b"") + b"\xff" * size


FRAMES = st.builds(
    lambda size, is_masked: frame(size, is_masked=is_masked),
    st.sampled_from([0, 1, 125, 126, 300, 2**16]),
    st.booleans(),
)


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(0, 70_000), max_size=8))
def test_frames_are_counted_wherever_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    counter = FrameCounter()
    counted = sum(counter.count(data[start:end], 100) for start, end in pairwise(places))
    assert counted == len(frames)


@pytest.mark.parametrize("size", [0, 5])
def test_counting_stops_where_there_are_too_many(size: int) -> None:
    assert FrameCounter().count(frame(size, is_masked=True) * 1_000, 10) == 11
