"""Secret names in the texts of PNG files that come as a stream."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

import pytest

from gateway.comfy.file_refs import finished
from gateway.comfy.png_texts import SIGNATURE, patched_part, text_patches
from gateway.files.hidden_texts import MAX_HEAD, USUAL_HEAD, patched


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def picture(*texts: int) -> bytes:
    """Return a PNG file with a secret in texts of these sizes."""
    told = [chunk(b"tEXt", b"prompt\0" + b'"secret"'.ljust(size)) for size in texts]
    return b"".join([SIGNATURE, chunk(b"IHDR", b""), *told, chunk(b"IDAT", b"secret" * 100_000), chunk(b"IEND", b"")])


async def streamed(data: bytes, size: int) -> AsyncIterator[bytes]:
    """Yield bytes in pieces."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def rewrite(text: bytes) -> bytes:
    """Return a text without its secret."""
    return text.replace(b"secret", b"own")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture: secret",
        picture(),
        picture(10),
        picture(10, USUAL_HEAD, 20),
        picture(10, MAX_HEAD, 20),
        picture(USUAL_HEAD - 100, 30),
        picture(50)[:60],
    ],
    ids=range(8),
)
async def test_a_stream_is_patched_as_the_file_is_for_view(data: bytes) -> None:
    usual = finished(text_patches(data[:USUAL_HEAD], rewrite))
    more = finished(text_patches(data[:MAX_HEAD], rewrite))
    expected = patched_part(more if len(more) > len(usual) else usual, data, 0)
    for size in (1000, 2**18, 2**23):
        told = b"".join([piece async for piece in patched(streamed(data, size), rewrite)])
        assert told == expected
