"""Files that name other files, by their content; and ordinary ones, which must pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.comfy.media_references import HEAD_BYTES, content_start, reference_in
from tests.support.media import DASH, HLS, IMF, NAMING, ORDINARY, SDP, tag


@pytest.mark.parametrize("what", NAMING)
def test_what_names_others(what: str) -> None:
    data = NAMING[what]
    variants = {
        "as it is": data,
        "BOM": b"\xef\xbb\xbf" + data,
        "blanks": b" \r\n\t\n" + data,
        "many blanks": b"\n" * 5_000 + data,
        "BOM and blanks": b"\xef\xbb\xbf \n" + data,
        "lower case": data.lower(),
        "upper case": data.upper(),
        "ID3": tag(100) + data,
        "ID3 with footer": tag(100, footer=True) + data,
        "two ID3": tag(100) + tag(3_000) + data,
        "much behind it": data + bytes(HEAD_BYTES),
    }
    for variant, each in variants.items():
        assert reference_in(each[:HEAD_BYTES]), variant


def test_what_is_searched_for_may_stand_late() -> None:
    for data in (DASH, IMF, SDP):
        assert reference_in(b"<!--" + b" x\n" * 200_000 + b"-->\n" + data)


@pytest.mark.parametrize("what", ORDINARY)
def test_what_names_none(what: str) -> None:
    assert reference_in(ORDINARY[what]) is None


def test_a_tag_that_reaches_past_the_head_hides_what_follows() -> None:
    data = tag(2 * HEAD_BYTES) + HLS
    assert "ID3" in (reference_in(data[:HEAD_BYTES]) or "")
    start = content_start(data[:HEAD_BYTES])
    assert start == len(data) - len(HLS)
    assert reference_in(data[start:])
    assert reference_in(tag(10))
    assert reference_in(tag(10) * 20 + b"\xff\xfb")
    assert content_start(tag(10) * 20) is None


def test_a_damaged_tag_hides_nothing() -> None:
    """FFmpeg probes the bytes of a tag that it can't skip."""
    assert reference_in(b"%!PS" + tag(10))
    assert reference_in(b"ID3\x04\x00\x00\xff\x00\x00\x00" + HLS) is None


@given(st.binary(max_size=200), st.sampled_from([b"", *NAMING.values(), *ORDINARY.values(), tag(50)]))
def test_any_bytes(data: bytes, other: bytes) -> None:
    for each in (data, other + data, data + other, b"ID3\x04\x00" + data):
        found = reference_in(each)
        assert found is None or found
        start = content_start(each)
        assert start is None or start >= 0
