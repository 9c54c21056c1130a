"""What waits on disk."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.store.spool import PIECE, Bulk, Lost, Spool


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    made = Spool(tmp_path / "spool", 10 * PIECE, 15 * PIECE, max_in_memory=2 * PIECE)
    made.open()
    yield made
    made.close()
    assert not (tmp_path / "spool").exists()


async def read(bulk: Bulk) -> bytes:
    """All of it."""
    return b"".join([bytes(piece) async for piece in bulk.pieces()])


def is_written(bulk: Bulk) -> bool:
    """Return True if it is not in memory."""
    return bulk.memory is None


async def until(is_so: Any) -> None:
    """Let others run until something is so."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_part_is_read_from_memory_then_from_disk(spool: Spool, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    bulk = spool.take("a", data)
    assert (bulk.size, bulk.held) == (len(data), 0)
    assert await read(bulk) == data
    pieces = aiter(bulk.pieces())
    first = bytes(await anext(pieces))
    await until(partial(is_written, bulk))
    assert first + b"".join([bytes(piece) async for piece in pieces]) == data
    (file,) = (tmp_path / "spool").iterdir()
    assert spool.bytes == spool.bytes_of("a") == len(data) == file.stat().st_size
    del bulk, pieces
    gc.collect()
    assert spool.bytes == 0
    await until(lambda: not list((tmp_path / "spool").iterdir()))


async def test_what_is_read_at_once_is_never_written(spool: Spool, tmp_path: Path) -> None:
    bulk = spool.take("a", bytes(PIECE))
    assert len(await read(bulk)) == PIECE
    del bulk
    await asyncio.sleep(0.1)
    assert not list((tmp_path / "spool").iterdir())


async def test_past_a_bound_it_stays_in_memory_and_counts(spool: Spool) -> None:
    held = [spool.take("a", bytes(5 * PIECE)) for _ in range(2)]
    assert [each.held for each in held] == [0, 0]
    more = spool.take("a", b"x" * PIECE)
    assert more.held == PIECE
    assert await read(more) == b"x" * PIECE
    # Others have places of their own, until all together have too much.
    assert spool.take("b", bytes(5 * PIECE)).held == 0
    other = spool.take("b", bytes(5 * PIECE))
    assert spool.take("c", bytes(1)).held == 1
    del held[0], other
    gc.collect()
    assert spool.take("a", bytes(PIECE)).held == 0


async def test_who_brings_more_waits_for_the_disk(spool: Spool) -> None:
    """As long as more is in memory than may be, and no longer."""
    held = [spool.take("a", bytes(PIECE)) for _ in range(5)]
    await asyncio.wait_for(spool.room(), 10)
    assert sum(each.memory is not None for each in held) <= 2


async def test_a_disk_that_takes_nothing_loses_it(spool: Spool, tmp_path: Path) -> None:
    bulk = spool.take("a", bytes(PIECE))
    (tmp_path / "spool").rmdir()
    await until(lambda: bulk.is_lost)
    with pytest.raises(Lost):
        await read(bulk)
    with pytest.raises(Lost):
        await spool.store([b"x"])
    await asyncio.wait_for(spool.room(), 10)
    # Where there is no disk at all, what comes stays in memory.
    assert spool.take("a", bytes(PIECE)).held == PIECE


async def test_what_an_earlier_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "7").write_bytes(b"x")
    spool = Spool(tmp_path / "spool", 1, 1)
    spool.open()
    assert not list((tmp_path / "spool").iterdir())
    spool.close()
