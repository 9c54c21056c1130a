"""Texts in PNG files are written over at the same length."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gateway.comfy.file_refs import finished
from gateway.comfy.png_texts import CHUNKS_AT_ONCE, Patch, holds_texts, patched_part, text_patches


def png(**texts: str) -> bytes:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def rewritten(text: bytes) -> bytes:
    return text.replace(b"o/secret/f/", b"")


def patched(data: bytes, patches: list[Patch], start: int = 0, end: int | None = None) -> bytes:
    return patched_part(patches, data[start:end], start)


def test_a_text_is_written_over_at_the_same_length() -> None:
    data = png(prompt=json.dumps({"1": "o/secret/f/pic"}), workflow=json.dumps({"nodes": []}))
    patches = finished(text_patches(data, rewritten))
    told = patched(data, patches)
    assert len(told) == len(data)
    with Image.open(io.BytesIO(told)) as image:
        image.load()
        assert json.loads(image.info["prompt"]) == {"1": "pic"}
        assert json.loads(image.info["workflow"]) == {"nodes": []}
        assert image.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_each_piece_of_a_file_is_written_over_alike(size: int) -> None:
    data = png(prompt=json.dumps({"1": "o/secret/f/pic"}))
    patches = finished(text_patches(data, rewritten))
    pieces = [patched(data, patches, start, start + size) for start in range(0, len(data), size)]
    assert b"".join(pieces) == patched(data, patches)


def test_thousands_of_texts_are_written_over_in_short_steps() -> None:
    """In any piece of the file, also one that begins or ends within a text."""
    data = png(**{f"t{number}": json.dumps({"1": f"o/secret/f/{number}"}) for number in range(1200)})
    assert len(list(text_patches(data, rewritten))) == 1200 // CHUNKS_AT_ONCE
    patches = finished(text_patches(data, rewritten))
    assert len(patches) == 1200
    told = patched(data, patches)
    with Image.open(io.BytesIO(told)) as image:
        image.load()
        assert [json.loads(image.info[f"t{number}"]) for number in range(1200)] == [
            {"1": str(number)} for number in range(1200)
        ]
    for size in (11, 4096):
        pieces = [patched(data, patches, start, start + size) for start in range(0, len(data), size)]
        assert b"".join(pieces) == told


def test_what_would_get_longer_is_left() -> None:
    data = png(prompt="{}")
    assert finished(text_patches(data, lambda text: text + b" ")) == []


@pytest.mark.parametrize("data", [b"", b"no picture", png(prompt="{}")[:40], b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt"])
def test_what_is_no_whole_picture_is_left(data: bytes) -> None:
    assert finished(text_patches(data, rewritten)) == []


def test_it_is_known_whether_all_texts_are_read() -> None:
    data = png(prompt="x" * 5000)
    assert holds_texts(data)
    assert not holds_texts(data[:4000])
    assert holds_texts(b"no picture")
