"""Binary frames."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy import previews
from gateway.comfy.previews import Preview


@given(st.binary(), st.sampled_from(["image/jpeg", "image/png"]), st.dictionaries(st.text(), st.text()))
def test_there_and_back(image: bytes, image_type: str, metadata: dict[str, str]) -> None:
    frame = previews.encode_with_metadata(Preview(metadata, image_type, image))
    found = previews.parse_with_metadata(frame)
    assert found is not None
    assert (found.image_type, found.image) == (image_type, image)
    number = 2 if image_type == "image/png" else 1
    assert previews.to_legacy(frame) == struct.pack(">II", 1, number) + image
    assert previews.encode_legacy(found) == previews.to_legacy(frame)


@given(st.binary() | st.binary().map(lambda data: b"\x00\x00\x00\x04" + data))
def test_nothing_is_ever_raised(frame: bytes) -> None:
    previews.event_type(frame)
    previews.parse_with_metadata(frame)
    previews.to_legacy(frame)


def test_lengths_that_lie() -> None:
    assert previews.parse_with_metadata(struct.pack(">II", 4, 2**32 - 1) + b"{}") is None
    assert previews.parse_with_metadata(struct.pack(">II", 4, 2) + b"[]x") is None
