"""Binary frames."""

from __future__ import annotations

import struct

import pytest
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
    previews.replace(frame, b"a", b"bc")


def test_lengths_that_lie() -> None:
    assert previews.parse_with_metadata(struct.pack(">II", 4, 2**32 - 1) + b"{}") is None
    assert previews.parse_with_metadata(struct.pack(">II", 4, 2) + b"[]x") is None


@pytest.mark.parametrize("new", [b"same", b"a-longer-one", b""])
def test_a_name_is_replaced_in_the_metadata_and_not_in_the_image(new: bytes) -> None:
    """The length before the metadata is theirs again."""
    frame = previews.encode_with_metadata(Preview({"prompt_id": "name", "x": ["name"]}, "image/png", b"of name"))
    replaced = previews.parse_with_metadata(previews.replace(frame, b"name", new))
    assert replaced is not None
    assert (replaced.metadata["prompt_id"], replaced.metadata["x"]) == (new.decode(), [new.decode()])
    assert replaced.image == b"of name"


def test_a_name_is_replaced_in_a_text_and_in_no_plain_image() -> None:
    text, image = b"\0\0\0\x03\0\0\0\x011 of name", b"\0\0\0\x01\0\0\0\x02 of name"
    assert previews.replace(text, b"name", b"other") == b"\0\0\0\x03\0\0\0\x011 of other"
    assert previews.replace(image, b"name", b"other") == image
    assert previews.replace(b"\0", b"name", b"other") == b"\0"
