"""Requests below /api/v2 that are not HTTP, too long or too slow: refused in the form of that API all the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
import pytest_asyncio

from tests.support.lab import GatewayProcess, Lab
from tests.support.security_world import KEYS, start

pytestmark = pytest.mark.asyncio(loop_scope="module")
HEAD = f"Host: 127.0.0.1\r\nAuthorization: Bearer {KEYS['anna']}\r\n"
# What is wrong, by the expected status: the request line with {} for the path, further headers, and the body.
MALFORMED: dict[str, tuple[int, str, str, str]] = {
    "method": (400, "G@T {} HTTP/1.1", "", ""),
    "version": (400, "GET {} HTTP/9.9", "", ""),
    "old version": (505, "GET {} HTTP/2.0", "", ""),
    "absolute target": (400, "G@T http://127.0.0.1{} HTTP/1.1", "", ""),
    "blank in the target": (400, "GET {}/a b HTTP/1.1", "", ""),
    "two hosts": (400, "GET {} HTTP/1.1", "Host: a\r\n", ""),
    "two lengths": (400, "POST {} HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2\r\n", "ab"),
    "length and chunks": (400, "POST {} HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    "chunk": (400, "POST {} HTTP/1.1", "Transfer-Encoding: chunked\r\n", "zz\r\n"),
    "name of a header": (400, "GET {} HTTP/1.1", "X Y: a\r\n", ""),
    "long header": (431, "GET {} HTTP/1.1", f"X: {'a' * 70_000}\r\n", ""),
    "long target": (414, f"GET {{}}/{'a' * 9_000} HTTP/1.1", "", ""),
    "length of the body": (413, "POST {} HTTP/1.1", "Content-Length: 99999999999999\r\n", ""),
    "expectation": (417, "POST {} HTTP/1.1", "Expect: tea\r\nContent-Length: 2\r\n", "{}"),
    "trace": (405, "TRACE {} HTTP/1.1", "", ""),
    "connect": (405, "CONNECT {} HTTP/1.1", "", ""),
    "blank before the method": (400, " GET {} HTTP/1.1", "", ""),
    "tab for a blank": (400, "GET\t{} HTTP/1.1", "", ""),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(shared_lab: Lab) -> GatewayProcess:
    """A gateway below a prefix, which waits a second for a request's head."""
    simulator = await shared_lab.simulator()
    return await start(shared_lab, simulator, server__base_path="/comfy", server__header_timeout=1)


async def refused(gateway: GatewayProcess, *pieces: bytes) -> tuple[int, dict[str, str], Any]:
    """Send a request in pieces, and return the status, the headers and the body of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        for piece in pieces:
            writer.write(piece)
            # The gateway may have refused what came, and closed.
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            # Most times the gateway reads the pieces apart. If it does not, it has the whole, and answers the same.
            await asyncio.sleep(0.003)
        async with asyncio.timeout(20):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
    return int(lines[0].split()[1]), headers, json.loads(body)


@pytest.mark.parametrize("prefix", ["", "/comfy"])
@pytest.mark.parametrize("name", MALFORMED)
async def test_refusals_have_the_form_of_the_api(gateway: GatewayProcess, name: str, prefix: str) -> None:
    status, line, further, body = MALFORMED[name]
    for path in ("/api/v2/jobs", "/queue"):
        request = f"{line.format(prefix + path)}\r\n{HEAD}{further}\r\n{body}".encode()
        # As a whole, and in pieces; a method that is none is refused before its path comes.
        apart = [] if line.startswith(("G@T", " ", "GET\t")) else [[request[:3], request[3:14], request[14:]]]
        for pieces in ([request], *apart):
            seen, headers, said = await refused(gateway, *pieces)
            assert seen == status, (path, said)
            if path == "/queue":
                assert said["error"].keys() == {"type", "message", "details", "extra_info"}
            else:
                assert said.keys() == {"error"}
                assert said["error"].keys() == {"code", "message", "details"}, said
                assert said["error"]["code"] in ("invalid_request", "payload_too_large", "method_not_allowed")
                assert headers["x-comfy-request-id"] == headers["x-request-id"]


@pytest.mark.parametrize("chunk", ["zz\r\n", "5\r\nhello", "5\r\nhello\r\n0\r\nno trailer\r\n\r\n"])
async def test_a_body_that_is_malformed_behind_its_head(gateway: GatewayProcess, chunk: str) -> None:
    """Its reader was not told, and waited until the body was too slow: 408 after half a minute."""
    head = f"{HEAD}Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    for path in ("/api/v2/jobs", "/api/v2/assets", "/upload/image", "/queue"):
        request = f"POST {path} HTTP/1.1\r\n{head}".encode()
        status, headers, said = await refused(gateway, request, b"", chunk.encode(), b"XX" if chunk[0] == "5" else b"")
        assert (status, headers["connection"]) == (400, "close"), (path, said)
        assert said["error"].get("type", "malformed_request") == "malformed_request"
        assert said["error"].get("code", "invalid_request") == "invalid_request"


async def test_a_head_that_does_not_end(gateway: GatewayProcess) -> None:
    status, _, said = await refused(gateway, b"GET /comfy/api/v2/jobs HTTP/1.1\r\nHost: a\r\n")
    assert status == 408
    assert said["error"]["code"] == "request_timeout"
    status, _, said = await refused(gateway, b"GET /queue HTTP/1.1\r\nHost: a\r\n")
    assert (status, said["error"]["type"]) == (408, "request_timeout")


async def test_a_head_whose_first_three_bytes_come_alone(gateway: GatewayProcess) -> None:
    """They were taken for a whole head, so that the gateway waited in vain for the rest of a longer one."""
    rest = f" /api/v2/nothing HTTP/1.1\r\n{HEAD}X: {'a' * 4000}\r\n\r\n".encode()
    status, _, said = await refused(gateway, b"GET", rest)
    assert (status, said["error"]["code"]) == (404, "not_found")
