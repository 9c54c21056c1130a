"""Sockets as the hub serves them, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib

import aiohttp
import pytest

from gateway.bus import status_topic
from gateway.comfy.events import Kind
from tests.support.hub import masked, served_hub


async def close_code(reader: asyncio.StreamReader) -> int:
    """Read until the gateway closes; the code that it gave."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            data += chunk
            place = 0
            while len(data) - place >= 4:
                size, start = data[place + 1], place + 2
                if size == 126:
                    size, start = int.from_bytes(data[place + 2 : place + 4], "big"), place + 4
                if len(data) < start + size:
                    break
                if data[place] & 0xF == 8:
                    return int.from_bytes(data[start : start + 2], "big")
                place = start + size
            data = data[place:]
    raise AssertionError("closed without a code")


BOMB = zlib.compressobj(9, zlib.DEFLATED, -15)
DEFLATED = BOMB.compress(bytes(10_000_000)) + BOMB.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("flood", "code"),
    [
        pytest.param(masked(9) * 100_000, 1008, id="pings"),
        pytest.param(masked(10) * 100_000, 1008, id="pongs"),
        pytest.param(masked(1) * 100_000, 1008, id="empty texts"),
        pytest.param(masked(9, bytes(125)) * 5_000, 1008, id="full pings"),
        pytest.param(masked(1, b"x", fin=False) + masked(0, fin=False) * 100_000, 1008, id="empty fragments"),
        pytest.param(masked(2, bytes(10_000)) * 100, 1008, id="many bytes"),
        pytest.param(masked(1, b'{"type":"feature_flags","data":{}}'.ljust(20_000)), 1009, id="a large first message"),
        pytest.param(masked(1, b"[" * 15_000) * 10, 1008, id="deep first messages"),
        pytest.param((masked(1, bytes(9_000), fin=False) + masked(0, bytes(9_000))), 1009, id="large in fragments"),
        pytest.param(masked(1, DEFLATED, rsv1=True), 1002, id="a bomb that nobody asked for"),
        pytest.param(masked(1, bytes(60_000)), 1009, id="a large text"),
    ],
)
async def test_who_sends_too_much_is_closed(flood: bytes, code: int) -> None:
    """Counted as it comes, before it is parsed; another socket of the same tenant goes on."""
    async with served_hub() as made:
        good = await made.listen()
        reader, writer = await made.raw()
        writer.write(flood)
        assert await close_code(reader) == code
        await made.until(lambda: len(made.hub) == 1)
        made.publish("s", Kind.LIFECYCLE, b"go on")
        assert (await good.receive()).data == b"go on"
        writer.close()


async def test_all_sockets_of_a_tenant_have_one_budget() -> None:
    """Each sends no more than one may; another tenant's sockets are not concerned."""
    async with served_hub(receive_burst=4096, receive_rate=1024) as made:
        other = await made.listen(tenant="other")
        ended = []
        for _ in range(40):
            reader, writer = await made.raw()
            writer.write(masked(1, bytes(3000)))
            ended.append((reader, writer))
        # 16 times as much as one may send, and some, for the time goes on.
        await made.until(lambda: len(made.hub) <= 24)
        await other.ping()
        assert (await other.receive()).type is aiohttp.WSMsgType.PONG
        for _, writer in ended:
            writer.close()


async def test_a_ping_now_and_then_is_answered() -> None:
    async with served_hub() as made:
        good = await made.listen()
        for n in range(200):
            await good.ping(b"%d" % n)
            answer = await good.receive()
            assert (answer.type, answer.data) == (aiohttp.WSMsgType.PONG, b"%d" % n)


PICTURE = bytes(60_000)


async def test_sockets_that_do_not_read_hold_no_more_than_their_tenant_may() -> None:
    """What may be left out is; then those that hold most are closed. One that reads hears everything."""
    maximum = 2_000_000
    async with served_hub(tenant_buffer=maximum) as made:
        good = await made.listen("good")
        silent = [await made.raw(f"s{n}") for n in range(10)]
        for step in range(600):
            for n in range(10):
                made.publish(f"s{n}", Kind.PREVIEW, PICTURE + bytes([n]))
            if step > 200:
                made.publish(f"s{step % 10}", Kind.LIFECYCLE, PICTURE + bytes([10]))
            if step % 50 == 0:
                made.publish("good", Kind.LIFECYCLE, b"go on")
                assert (await good.receive()).data == b"go on"
            await asyncio.sleep(0)
            # Beside it, the one frame of each socket that is on its way into its transport.
            assert made.hub.buffered <= maximum + len(PICTURE) + 65_536
        assert made.metrics.slow_closed._value.get() > 0
        for _, writer in silent:
            writer.transport.abort()
        await made.until(lambda: len(made.hub) == 1 and made.hub.buffered == 0)


async def test_what_all_sockets_of_a_session_hold_counts_once() -> None:
    """Nobody is closed: there is one picture in memory, however many wait for it."""
    async with served_hub(tenant_buffer=2_000_000) as made:
        silent = [await made.raw() for _ in range(20)]
        for _ in range(20):
            made.publish("s", Kind.LIFECYCLE, PICTURE + b"x")
        assert made.hub.buffered <= 20 * len(PICTURE) + 20 + 65_536
        for _, writer in silent:
            writer.transport.abort()


async def test_a_burst_of_changes_is_one_status_and_the_last_one_always_comes() -> None:
    async with served_hub() as made:
        listening = [await made.listen(f"s{n}") for n in range(3)]
        for _ in range(50):
            made.bus.publish(status_topic("t"), None)
        # The second burst comes within the pause after the first one's.
        for socket in listening:
            assert json.loads((await socket.receive()).data)["type"] == "status"
        for _ in range(50):
            made.bus.publish(status_topic("t"), None)
        for n, socket in enumerate(listening):
            assert json.loads((await socket.receive()).data)["type"] == "status"
            made.publish(f"s{n}", Kind.LIFECYCLE, b"end")
            assert (await socket.receive()).data == b"end"


async def test_a_socket_that_goes_takes_its_status_along() -> None:
    async with served_hub() as made:
        socket = await made.listen()
        made.bus.publish(status_topic("t"), None)
        await socket.close()
        await made.until(lambda: len(made.hub) == 0)
        made.bus.publish(status_topic("t"), None)
