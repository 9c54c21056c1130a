"""What a tenant with a key may do with WebSockets, and with the order of its prompts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import aiohttp

from benchmarks.attacks import Attack, Case
from tests.support.lab import until

PING, TEXT, CONTINUATION = 9, 1, 0
FLOODING, FLOOD_SECONDS = 40, 3.0
SILENT, WATCHING, AT_THE_FRONT = 200, 1_000, 25
JOBS = 60
_HANDSHAKE = (
    "GET /ws?clientId={client_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def prompt(seed: int = 1) -> dict[str, object]:
    """A prompt of twenty steps, with a preview for each."""
    sampler = {"steps": 20, "step_seconds": 0.02, "seed": seed, "width": 512, "height": 512}
    return {
        "1": {"class_type": "SlowSampler", "inputs": sampler},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def frame(opcode: int, payload: bytes = b"", *, is_last: bool = True) -> bytes:
    """A client's frame (RFC 6455, section 5.2). Its mask is all zeros."""
    first, size = opcode | (0x80 if is_last else 0), len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 2**16:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([first, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


async def opened(attack: Attack, client_id: str) -> asyncio.StreamWriter:
    """Open a WebSocket that is written by hand and not read."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", attack.port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
    writer.write(_HANDSHAKE.format(client_id=client_id, key=attack.keys["anna"]).encode())
    await reader.readuntil(b"\r\n\r\n")
    return writer


def flood(name: str, data: bytes) -> Case:
    """A case that writes the same on many sockets. Each is opened again whenever it is closed."""

    async def attack(attack: Attack) -> int:
        count = 0

        async def one(n: int) -> None:
            nonlocal count
            while True:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    writer = await opened(attack, f"flood{n}")
                    while not writer.is_closing():
                        writer.write(data)
                        count += 1
                        await writer.drain()
                        await asyncio.sleep(0)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLOOD_SECONDS):
                await asyncio.gather(*(one(n) for n in range(FLOODING)))
        return count

    return Case(f"sockets, {name}", attack)


async def _post(attack: Attack, body: dict[str, object]) -> None:
    headers = {"X-API-Key": attack.keys["anna"]}
    async with attack.http.post(f"{attack.url}/prompt", json=body, headers=headers) as answer:
        await answer.read()


async def _remaining(attack: Attack) -> int:
    async with attack.http.get(f"{attack.url}/prompt", headers={"X-API-Key": attack.keys["anna"]}) as answer:
        return int((await answer.json())["exec_info"]["queue_remaining"])


async def silent(attack: Attack) -> int:
    """Have previews sent to sockets of one session that read nothing."""
    writers = [await opened(attack, "silent") for _ in range(SILENT)]
    for seed in range(JOBS):
        await _post(attack, {"prompt": prompt(seed), "client_id": "silent"})

    async def is_empty() -> bool:
        return await _remaining(attack) == 0

    await until(is_empty, 120)
    for writer in writers:
        writer.transport.abort()
    return JOBS


async def watching(attack: Attack) -> int:
    """Have many sockets hear of prompts that come and are cancelled."""
    async with aiohttp.ClientSession(
        headers={"X-API-Key": attack.keys["anna"]}, connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        sockets = [await http.ws_connect(f"{attack.url}/ws?clientId=s{n}") for n in range(WATCHING)]
        readers = [asyncio.create_task(_read(each)) for each in sockets]
        for seed in range(200):
            await _post(attack, {"prompt": prompt(seed)})
        async with http.post(f"{attack.url}/queue", json={"clear": True}) as answer:
            await answer.read()
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return 200


async def _read(each: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in each:
        pass


async def at_the_front(attack: Attack) -> int:
    """Keep jobs with `front` waiting all the time."""
    count = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5.0):
            while True:
                for _ in range(max(0, AT_THE_FRONT + 1 - await _remaining(attack))):
                    await _post(attack, {"prompt": prompt(), "front": True})
                    count += 1
                await asyncio.sleep(0.02)
    return count


_FLAGS = json.dumps({"type": "feature_flags", "data": {str(n): [[]] * 9 for n in range(30_000)}}).encode()
CASES = (
    flood("pings", frame(PING) * 20_000),
    flood("empty texts", frame(TEXT) * 20_000),
    flood("empty fragments", frame(TEXT, b"x", is_last=False) + frame(CONTINUATION, is_last=False) * 20_000),
    flood("large first messages", frame(TEXT, _FLAGS[:1_000_000])),
    flood("the largest first messages", frame(TEXT, b'{"type":"feature_flags","data":[' + b"[]," * 5_000 + b"0]}")),
    Case(f"{SILENT} sockets that do not read", silent),
    Case(f"status to {WATCHING} sockets", watching),
    Case(f"{AT_THE_FRONT} jobs at the front", at_the_front),
)
