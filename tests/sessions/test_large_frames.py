"""Frames that are written piece by piece: each arrives whole, and nothing else amid it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.bus import session_topic
from gateway.comfy.events import Frame, Kind
from gateway.store.spool import Spool
from tests.support.hub import ServedHub, masked, served_hub

PICTURE = bytes(range(256)) * 8_000
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    made = Spool(tmp_path / "spool", 10**8, 10**8)
    made.open()
    yield made
    made.close()


def publish(made: ServedHub, spool: Spool, count: int = 1, picture: bytes = PICTURE) -> None:
    """Tell a session of pictures."""
    for n in range(count):
        bulk = spool.take("t", picture)
        frame = Frame(Kind.RESULT, b"\0\0\0\x01\0\0\0\x02%d" % n, "p", "result", binary=True, bulk=bulk)
        made.bus.publish(session_topic("t", "s"), frame)


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read a whole frame, which must be all of its message."""
    first, size = await reader.readexactly(2)
    assert first & 0x80
    if size >= 126:
        is_short = size == 126
        size = int.from_bytes(await reader.readexactly(2 if is_short else 8), "big")
        # A browser closes the connection if a shorter form would do (RFC 6455, section 5.2).
        assert size >= (126 if is_short else 2**16)
    return first & 0xF, await reader.readexactly(size)


async def read_all(reader: asyncio.StreamReader) -> None:
    """Read frames for as long as there are any."""
    while True:
        await next_frame(reader)


async def begun(reader: asyncio.StreamReader) -> None:
    """Wait until something is there to be read."""
    while not reader._buffer:  # type: ignore[attr-defined]  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_ping_amid_it_is_answered_after_it(spool: Spool) -> None:
    async with served_hub() as made:
        reader, writer = await made.raw()
        await next_frame(reader)
        publish(made, spool, 2)
        await begun(reader)
        writer.write(masked(PING, b"there?"))
        heard = [await next_frame(reader) for _ in range(3)]
        assert (PONG, b"there?") in heard
        assert [data for kind, data in heard if kind == BINARY] == [
            b"\0\0\0\x01\0\0\0\x02%d" % n + PICTURE for n in range(2)
        ]
        writer.transport.abort()


@pytest.mark.parametrize("size", [100, 125, 126, 40_000, 2**16 - 1, 2**16])
async def test_its_length_takes_no_more_bytes_than_it_needs(spool: Spool, size: int) -> None:
    async with served_hub() as made:
        reader, writer = await made.raw()
        await next_frame(reader)
        publish(made, spool, picture=bytes(size - 9))
        assert await next_frame(reader) == (BINARY, b"\0\0\0\x01\0\0\0\x020" + bytes(size - 9))
        writer.transport.abort()


async def test_who_closes_amid_it_gets_the_rest_and_an_answer(spool: Spool) -> None:
    async with served_hub() as made:
        reader, writer = await made.raw()
        await next_frame(reader)
        publish(made, spool)
        await begun(reader)
        writer.write(masked(CLOSE, (1000).to_bytes(2, "big")))
        assert await next_frame(reader) == (BINARY, b"\0\0\0\x01\0\0\0\x020" + PICTURE)
        assert (await next_frame(reader))[0] == CLOSE
        assert await reader.read() == b""
        writer.close()


async def test_who_goes_amid_it_leaves_nothing_behind(spool: Spool) -> None:
    async with served_hub() as made:
        reader, writer = await made.raw()
        publish(made, spool, 3)
        await begun(reader)
        writer.transport.abort()
        await made.until(lambda: len(made.hub) == 0 and spool.bytes == 0)


async def test_who_goes_while_its_writer_waits_leaves_nothing_behind(spool: Spool) -> None:
    async with served_hub() as made:
        reader, writer = await made.raw()
        await next_frame(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        gc.disable()
        try:
            publish(made, spool, 3, picture=bytes(10_000_000))
            # Its writer waits once the connection's own buffers are full.
            await asyncio.sleep(0.2)
            writer.transport.abort()
            await made.until(lambda: len(made.hub) == 0 and spool.bytes == 0)
        finally:
            gc.enable()


async def test_what_the_disk_lost_closes_the_socket(spool: Spool, tmp_path: Path) -> None:
    """There is no half frame: a reader knows that more was to come."""
    async with served_hub() as made:
        reader, writer = await made.raw()
        await next_frame(reader)
        publish(made, spool, 8)
        await made.until(lambda: len(list((tmp_path / "spool").iterdir())) >= 4)
        for file in (tmp_path / "spool").iterdir():
            file.unlink()
        with pytest.raises(asyncio.IncompleteReadError):
            await read_all(reader)
        writer.close()
        await made.until(lambda: len(made.hub) == 0)
        assert made.metrics.slow_closed._value.get() == 1
        await made.until(lambda: spool.bytes == 0)
