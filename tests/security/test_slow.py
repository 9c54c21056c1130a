"""Clients that take their time, or too many connections; and that others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
from collections.abc import AsyncIterator

import aiohttp
import psutil

from tests.security.recorder import talk
from tests.support.lab import Lab, until
from tests.support.metrics import metric, rest

# What the gateway is told here, in seconds, and what is allowed for on top on a machine that is busy.
LIMIT = 2.0
SLACK = 20.0
CROWD = 1_000


@contextlib.asynccontextmanager
async def connected(port: int, count: int, first: bytes = b"") -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections that have said no more than `first`."""
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in pairs:
        writer.write(first)
    try:
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


async def test_a_thousand_that_never_finish_their_headers(lab: Lab) -> None:
    """Slow-loris. Whoever else asks is answered, on old and on new connections, and the thousand are closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * CROWD)), hard))
    gateway = await lab.gateway(await lab.simulator(), server__header_timeout=LIMIT)
    pairs = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(CROWD)]
    began = asyncio.get_running_loop().time()
    ended = []

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /queue HTTP/1.1\r\nHost: x\r\n")
        closing = asyncio.create_task(rest(reader))
        while not closing.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.wait([closing], timeout=0.5)
        ended.append((asyncio.get_running_loop().time() - began, await closing))
        writer.close()

    crowd = [asyncio.create_task(dribble(*pair)) for pair in pairs]
    took = []
    while not all(task.done() for task in crowd):
        asked = asyncio.get_running_loop().time()
        async with lab.http.get(f"{gateway.url}/queue") as answer:
            assert answer.status == 200
        took.append(asyncio.get_running_loop().time() - asked)
        assert (await talk(gateway.port, b"GET /queue HTTP/1.0\r\n\r\n", silence=SLACK)).statuses == [200]
        assert asyncio.get_running_loop().time() - began < LIMIT + SLACK
    await asyncio.gather(*crowd)
    assert took
    # The figure that counts is the benchmark's (benchmarks/slow.py): this machine has other tests to run.
    print(f"p99 of {len(took)} answers meanwhile: {sorted(took)[int(len(took) * 0.99)] * 1000:.1f} ms")
    assert {heard.partition(b"\r\n")[0] for _, heard in ended} <= {b"HTTP/1.1 408 Request Timeout", b""}
    assert await metric(lab, gateway, 'connections_cut_total{reason="header"}') >= CROWD
    assert await metric(lab, gateway, "connections_open") < 10


async def test_headers_and_silence_and_idleness(lab: Lab) -> None:
    """A connection that says nothing, one that breaks off, one that is kept without use."""
    simulator = await lab.simulator()
    whole = b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n"
    gateway = await lab.gateway(simulator, server__header_timeout=LIMIT)
    expected = {b"": [], b"\r\n\r\n": [408], b"GE": [408], whole[:-2]: [408]}
    talks = await asyncio.gather(*(talk(gateway.port, first, silence=LIMIT + SLACK) for first in expected))
    assert [(heard.statuses, heard.closed) for heard in talks] == [(statuses, True) for statuses in expected.values()]
    # The next request's headers have as long as the first's.
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(whole)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(whole[:-2])
    assert b" 408 " in await asyncio.wait_for(rest(reader), LIMIT + SLACK)
    writer.close()
    assert await gateway.stop() == 0
    gateway = await lab.gateway(simulator, server__keepalive_timeout=LIMIT)
    firsts = (whole, whole + whole[:-2])
    talks = await asyncio.gather(*(talk(gateway.port, first, silence=LIMIT + SLACK) for first in firsts))
    assert [(heard.statuses, heard.closed) for heard in talks] == [([200], True)] * 2


async def test_bodies(lab: Lab) -> None:
    """One that comes too slowly gets 408, whoever reads it; one that comes slowly but steadily may take its time."""
    simulator = await lab.simulator()
    gateway = await lab.gateway(simulator, server__body_timeout=LIMIT, server__body_rate=500)

    async def send(path: str, size: int, piece: int, pause: float) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nContent-Type: ".encode())
        writer.write(b"multipart/form-data; boundary=b\r\n\r\n" if "upload" in path else b"application/json\r\n\r\n")
        answer = asyncio.create_task(reader.readuntil(b"\r\n"))
        for _ in range(size // piece):
            writer.write(b" " * piece)
            await asyncio.wait([answer], timeout=pause)
            if answer.done():
                break
        line = await asyncio.wait_for(answer, LIMIT + SLACK)
        closed = asyncio.create_task(rest(reader))
        if b" 408 " in line:
            await asyncio.wait_for(closed, LIMIT + SLACK)
        closed.cancel()
        writer.close()
        return line

    slow = [send(path, 10_000, 10, 0.2) for path in ("/prompt", "/queue", "/upload/image", "/userdata/x", "/history")]
    silent = [send(path, 10_000, 5_000, 60) for path in ("/prompt", "/upload/image", "/userdata/y")]
    steady = [send(path, 15_000, 300, 0.1) for path in ("/prompt", "/userdata/x")]
    *refused, first, second = await asyncio.gather(*slow, *silent, *steady)
    assert refused == [b"HTTP/1.1 408 Request Timeout\r\n"] * 8
    assert b" 400 " in first
    assert b" 200 " in second
    assert await metric(lab, gateway, 'connections_cut_total{reason="body"}') == 8


async def test_readers_that_do_not_read(lab: Lab) -> None:
    """A large answer waits in the kernel and not in memory, and not for ever."""
    gateway = await lab.gateway(await lab.simulator(), server__send_timeout=LIMIT)
    form = aiohttp.FormData()
    form.add_field("image", io.BytesIO(bytes(50_000_000)), filename="big.bin")
    async with lab.http.post(f"{gateway.url}/upload/image", data=form) as answer:
        assert answer.status == 200
    process = psutil.Process(gateway.pid)
    before = process.memory_info().rss
    ask = b"GET /view?filename=big.bin&type=input HTTP/1.1\r\nHost: x\r\n\r\n"
    maximum = 0
    pairs = [await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024) for _ in range(20)]
    for _, writer in pairs:
        writer.write(ask)
        writer.transport.pause_reading()

    async def cut() -> bool:
        nonlocal maximum
        maximum = max(maximum, process.memory_info().rss - before)
        return await metric(lab, gateway, 'connections_cut_total{reason="send"}') >= len(pairs)

    await until(cut, LIMIT + SLACK, "all of them are cut")
    assert maximum < 60_000_000
    for _, writer in pairs:
        writer.close()


async def test_too_many_connections(lab: Lab) -> None:
    """Those that wait give way; where all are busy the next one is told so."""
    gateway = await lab.gateway(await lab.simulator(), server__max_connections=40)
    async with connected(gateway.port, 60):
        assert (await talk(gateway.port, b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n")).statuses == [200]
    assert await metric(lab, gateway, 'connections_cut_total{reason="room"}') >= 20
    sockets = [await lab.http.ws_connect(f"{gateway.url}/ws?clientId={n}") for n in range(30)]
    while True:
        try:
            sockets.append(await lab.http.ws_connect(f"{gateway.url}/ws?clientId={len(sockets)}"))
        except aiohttp.ClientError:
            break
    assert 37 <= len(sockets) <= 40
    heard = await talk(gateway.port, b"")
    assert (heard.statuses, heard.closed) == ([503], True)
    assert b"too_many_connections" in heard.raw
    for socket in sockets:
        await socket.close()

    async def answered() -> bool:
        return (await talk(gateway.port, b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n")).statuses == [200]

    await until(answered, what="there is room again")


async def test_too_many_connections_of_one_address(lab: Lab) -> None:
    gateway = await lab.gateway(await lab.simulator(), server__max_connections_per_address=10)
    async with connected(gateway.port, 12):
        heard = await talk(gateway.port, b"")
        assert (heard.statuses, heard.closed) == ([429], True)
    assert await gateway.stop() == 0
    proxied = await lab.gateway(
        lab.servers[0].url, server__max_connections_per_address=10, server__trusted_proxies="127.0.0.0/8"
    )
    async with connected(proxied.port, 12):
        assert (await talk(proxied.port, b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n")).statuses == [200]


async def test_idle_connections_of_one_address_give_way(lab: Lab) -> None:
    """They may be kept for an hour, so a client that leaves them behind must not lock itself out."""
    limits = {"server__max_connections_per_address": 10, "server__header_timeout": 0.5}
    gateway = await lab.gateway(await lab.simulator(), **limits)
    whole = b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(gateway.port, 10, whole):

        async def answered() -> bool:
            return (await talk(gateway.port, whole)).statuses == [200]

        await until(answered, SLACK, "there is room")
    assert await metric(lab, gateway, 'connections_cut_total{reason="room"}') >= 1


async def test_no_more_open_files(lab: Lab) -> None:
    """Nothing breaks: who was there is served on, and the next is when there is room again."""
    gateway = await lab.gateway(await lab.simulator())
    async with lab.http.get(f"{gateway.url}/queue") as answer:
        assert answer.status == 200
    used = psutil.Process(gateway.pid).num_fds()
    before = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (used + 10, before[1]))
    async with connected(gateway.port, 30, b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n"):

        async def complained() -> bool:
            return any(line.get("event") == "connection_accept_failed" for line in gateway.log_lines())

        await until(complained, what="it says so")
        async with lab.http.get(f"{gateway.url}/queue") as answer:
            assert answer.status == 200
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, before)
    heard = await talk(gateway.port, b"GET /queue HTTP/1.0\r\n\r\n", silence=SLACK)
    assert heard.statuses == [200]
