"""An id in a stream is replaced wherever the chunks are cut."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.web.routes.proxying import replacing

OLD, NEW = b"0123456789", b"abcdefghij"


async def cut(data: bytes, size: int) -> AsyncIterator[bytes]:
    """A stream in chunks of a size."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 9, 10, 11, 1_000])
async def test_replacing(size: int) -> None:
    for data in (b"", OLD, b"x" + OLD + OLD + b"y" * 30 + OLD[:9], b"short"):
        told = b"".join([chunk async for chunk in replacing(cut(data, size), OLD, NEW)])
        assert told == data.replace(OLD, NEW)
