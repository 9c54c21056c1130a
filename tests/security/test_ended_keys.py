"""What takes long ends with the key that let it in: answers that are being sent, bodies that are being received."""

from __future__ import annotations

import asyncio
import io
import socket

from tests.support.comfy_client import Comfy
from tests.support.keys_api import ask, make
from tests.support.lab import Lab, until
from tests.support.metrics import metric, rest
from tests.support.uploads import upload, with_keys

SIZE = 30_000_000
FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="late.bin"\r\n\r\nbytes\r\n--b--\r\n'
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def test_what_is_under_way_ends_with_its_key_and_nobody_elses_does(lab: Lab) -> None:
    """The gateway's own copy and a backend's file being sent, an upload and a body passed on being received."""
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator)
    keys = {name: await make(lab, gateway, name, role="admin", tenant="team") for name in ("carol", "dave")}
    for url, name in ((gateway.url, "ours.bin"), (simulator.url, "theirs.bin")):
        comfy = Comfy(lab.http, url, X_API_Key=keys["carol"])
        assert (await upload(comfy, io.BytesIO(bytes(SIZE)), name))[0] == 200

    async def begin(key: str, request: str, more: str = "", expected: bytes = b" 200 ") -> Ends:
        # However much this machine's kernel would take for a reader: the file is to be on its way still.
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, ("127.0.0.1", gateway.port))
        reader, writer = await asyncio.open_connection(sock=slow, limit=1024)
        writer.write(f"{request} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n{more}\r\n".encode())
        assert expected in await reader.readuntil(b"\r\n\r\n")
        return reader, writer

    async def send(key: str, path: str) -> Ends:
        more = f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(FORM)}\r\n"
        ends = await begin(key, f"POST {path}", f"{more}Expect: 100-continue\r\n", b" 100 ")
        ends[1].write(FORM[:-9])
        return ends

    async def all_four(key: str) -> list[Ends]:
        files = [await begin(key, f"GET /view?type=input&filename={name}") for name in ("ours.bin", "theirs.bin")]
        return [*files, *[await send(key, path) for path in ("/upload/image", "/userdata/x")]]

    ends, stays = await all_four(keys["carol"]), await all_four(keys["dave"])
    assert (await ask(lab, gateway, "DELETE", "/carol"))[0] == 200

    async def are_cut() -> bool:
        return await metric(lab, gateway, 'connections_cut_total{reason="key"}') == len(ends)

    await until(are_cut, what="all that the revoked key had under way is cut off")
    for reader, _ in ends:
        assert len(await rest(reader)) < SIZE
    # The other's go on to their end.
    for reader, writer in stays[2:]:
        writer.write(FORM[-9:])
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    for reader, _ in stays[:2]:
        assert len(await reader.readexactly(SIZE)) == SIZE
    for _, writer in ends + stays:
        writer.close()
