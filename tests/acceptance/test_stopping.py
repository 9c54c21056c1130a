"""SIGTERM while requests are under way: what a client still sends is read, done, answered and kept."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import dataclass

from tests.support.comfy_client import Comfy
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.pictures import png
from tests.support.uploads import ANNA, with_keys
from tests.support.workflows import slow

NOBODY = "http://127.0.0.1:1"


@dataclass(slots=True)
class HalfSent:
    """A POST of which the gateway waits for the second half."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    async def finish(self) -> tuple[int, dict[str, str], bytes]:
        """Send the rest; status, headers and body of the answer."""
        self.writer.write(self.rest)
        status, headers = await _head(self.reader)
        body = await self.reader.readexactly(int(headers["content-length"]))
        assert await self.reader.read() == b""
        self.writer.close()
        return status, headers, body


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    async with asyncio.timeout(20):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = [line.partition(": ") for line in lines[1:] if line]
    return int(lines[0].split()[1]), {name.lower(): value for name, _, value in fields}


async def send_half(gateway: GatewayProcess, path: str, body: bytes, kind: str, key: str = "") -> HalfSent:
    """Send half of a body, once the gateway has said that it reads it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    fields = {"Host": "127.0.0.1", "Content-Type": kind, "Content-Length": len(body), "Expect": "100-continue"}
    if key:
        fields["X-API-Key"] = key
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
    assert (await _head(reader))[0] == 100
    middle = len(body) // 2
    writer.write(body[:middle])
    return HalfSent(reader, writer, body[middle:])


def form(data: bytes, name: str) -> tuple[bytes, str]:
    """The body of POST /upload/image, and its type."""
    disposition = f'Content-Disposition: form-data; name="image"; filename="{name}"'
    body = b"--part\r\n%b\r\nContent-Type: image/png\r\n\r\n%b\r\n--part--\r\n" % (disposition.encode(), data)
    return body, "multipart/form-data; boundary=part"


async def is_closed(gateway: GatewayProcess) -> bool:
    """Whether nobody listens there any more."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def stop(gateway: GatewayProcess) -> None:
    """Send SIGTERM, and wait until the gateway takes no more connections."""
    gateway.signal(signal.SIGTERM)
    await until(lambda: is_closed(gateway), what="the port is closed")


async def test_bodies_under_way_are_read_done_answered_and_kept(lab: Lab) -> None:
    simulator = await lab.simulator()
    gateway = await with_keys(lab, simulator, server__drain_timeout=60)
    comfy = Comfy(lab.http, gateway.url, X_API_Key=ANNA)
    picture = png((7, 8, 9), 64)
    upload = await send_half(gateway, "/upload/image", *form(picture, "late.png"), ANNA)
    prompt = await send_half(gateway, "/prompt", json.dumps({"prompt": slow(5)}).encode(), "application/json", ANNA)
    userdata = await send_half(gateway, "/userdata/late.json", b'{"late": true}', "application/json", ANNA)
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    idle_writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await _head(idle_reader))[0] == 200
    listener = await comfy.listen("late")
    await stop(gateway)
    # A connection that waits for its next request is closed at once, and so is a socket.
    async with asyncio.timeout(20):
        await idle_reader.read()
        while (message := await listener.receive())["type"] != "closed CLOSE":
            pass
    idle_writer.close()
    assert message["data"] == {"code": 1001}
    answers = await asyncio.gather(*(half.finish() for half in (upload, prompt, userdata)))
    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert [headers["connection"] for _, headers, _ in answers] == ["close"] * 3
    assert await gateway.wait() == 0
    again = await lab.gateway(simulator, options=("--config", str(lab.directory / "gateway.yaml")))
    comfy = Comfy(lab.http, again.url, X_API_Key=ANNA)
    assert await comfy.view({"filename": "late.png", "type": "input"}) == picture
    assert await comfy.get("/userdata/late.json") == {"late": True}
    await comfy.entry(json.loads(answers[1][2])["prompt_id"])


async def test_a_second_signal_or_the_time_ends_it(lab: Lab) -> None:
    """With a body that never comes."""
    for timeout, signals in ((3600, 1), (0.2, 0)):
        gateway = await lab.gateway(NOBODY, up=0, server__drain_timeout=timeout)
        half = await send_half(gateway, "/prompt", json.dumps({"prompt": slow()}).encode(), "application/json")
        await stop(gateway)
        for _ in range(signals):
            assert gateway.running
            gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0
        half.writer.close()
        (line,) = [line for line in gateway.log_lines() if line["event"] == "requests_cut"]
        assert (line["level"], line["connections"]) == ("warning", 1)
        # Nothing failed here: an alert on 5xx must not go off for a restart.
        assert [line["status"] for line in gateway.log_lines() if line["event"] == "http"][-1] == 499


async def test_it_says_that_it_is_stopping(lab: Lab) -> None:
    """To who has begun to ask /readyz before."""
    gateway = await lab.gateway(NOBODY, up=0)
    half = await send_half(gateway, "/prompt", json.dumps({"prompt": slow()}).encode(), "application/json")
    # Half a head, and then the signal: the gateway's loop finds both, and reads before it turns to the signal.
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /readyz HTTP/1.1\r\n")
    await stop(gateway)
    writer.write(b"Host: localhost\r\n\r\n")
    status, headers = await _head(reader)
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    assert (status, body["status"]) == (503, "stopping")
    writer.close()
    assert (await half.finish())[0] in (200, 400)
    assert await gateway.wait() == 0
