"""X-Request-Id: each answer names its request's id, and so does the log."""

from __future__ import annotations

import asyncio
import re
import string
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.settings import ServerSettings, Settings
from gateway.telemetry.metrics import Metrics
from gateway.web.http.request_ids import MAX_LENGTH, request_id_from
from gateway.web.server.parser_feed import INTAKES
from gateway.web.server.server import Server
from tests.security.recorder import Recorder, passes_on, talk
from tests.support.lab import GatewayProcess, Lab, until
from tests.support.security_world import KEYS, start

SAFE = string.ascii_letters + string.digits + "-_.:+/="
MADE = re.compile(r"[0-9a-f]{32}")
HEADER = re.compile(rb"(?i)\r\nX-Request-Id: ([^\r]*)")
APP = "https://app.example"
KEY, BOSS = (b"X-API-Key: " + KEYS[name].encode() for name in ("anna", "boss"))


@given(st.text(SAFE, min_size=1, max_size=MAX_LENGTH))
def test_an_id_that_is_well_formed_is_taken(given_id: str) -> None:
    assert request_id_from(given_id) == given_id


@given(st.text(max_size=2 * MAX_LENGTH) | st.text(SAFE, min_size=MAX_LENGTH + 1) | st.none())
def test_another_gets_one_that_is_made(given_id: str | None) -> None:
    made = request_id_from(given_id)
    if given_id is None or not 0 < len(given_id) <= MAX_LENGTH or not set(given_id) <= set(SAFE):
        assert MADE.fullmatch(made)
        assert made != request_id_from(given_id)
    else:
        assert made == given_id


def ask(target: bytes, *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A request that closes its connection."""
    lines = b"".join(header + b"\r\n" for header in (b"Host: x", b"Connection: close", *headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, lines, body)


ORIGIN = b"Origin: " + APP.encode()
UPGRADE = (b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
JSON = b"Content-Type: application/json"
# What is answered by whatever means: the request, its status, and whether the gateway can read the id that it brings.
KINDS: dict[str, tuple[bytes, int, bool]] = {
    "short": (ask(b"/queue", KEY), 200, True),
    "HEAD": (ask(b"/queue", KEY, method=b"HEAD"), 200, True),
    "no key": (ask(b"/queue"), 401, True),
    "a wrong key": (ask(b"/queue", b"X-API-Key: wrong"), 401, True),
    "two keys": (ask(b"/queue", KEY, b"X-API-Key: other"), 400, True),
    "another role": (ask(b"/gateway/keys", KEY), 403, True),
    "another origin": (ask(b"/queue", b"Origin: https://evil.example", method=b"POST"), 403, True),
    "a preflight": (ask(b"/queue", ORIGIN, b"Access-Control-Request-Method: GET", method=b"OPTIONS"), 200, True),
    "a bad preflight": (
        ask(b"/queue", b"Origin: https://evil.example", b"Access-Control-Request-Method: GET", method=b"OPTIONS"),
        403,
        True,
    ),
    "no key is needed": (ask(b"/healthz"), 200, True),
    "the page to sign in": (ask(b"/gateway/signin"), 200, True),
    "a browser that is sent there": (ask(b"/", b"Sec-Fetch-Mode: navigate", b"Accept: text/html"), 303, True),
    "not there": (ask(b"/gateway/none", BOSS), 404, True),
    "no file": (ask(b"/view?filename=none.png", KEY), 404, True),
    "no such method": (ask(b"/gateway/keys", BOSS, method=b"PROPFIND"), 405, True),
    "too large": (ask(b"/prompt", KEY, b"Content-Length: 9999999999", method=b"POST"), 413, True),
    "no JSON": (ask(b"/prompt", KEY, JSON, b"Content-Length: 1", method=b"POST", body=b"{"), 400, True),
    "an odd Expect": (ask(b"/prompt", KEY, b"Expect: cake", b"Content-Length: 1", method=b"POST"), 417, True),
    "in chunks": (ask(b"/healthz", b"Transfer-Encoding: chunked"), 411, True),
    "streamed from a backend": (ask(b"/extensions/of-backend.js", KEY), 200, True),
    "a backend's refusal": (ask(b"/extensions/refused.js", KEY), 404, True),
    "a socket": (ask(b"/ws", KEY, *UPGRADE).replace(b"close", b"Upgrade", 1), 101, True),
    "no socket": (ask(b"/ws", KEY), 400, True),
    "no host": (ask(b"/queue").replace(b"Host: x", b"Host: a b"), 400, True),
    "no HTTP": (b"nonsense\r\n\r\n", 400, False),
    "a bad header": (ask(b"/queue", b"no colon"), 400, False),
    "a long target": (ask(b"/" + b"a" * 60_000), 414, False),
    "a long head": (ask(b"/", *[b"A: " + b"a" * 8000] * 5), 431, False),
    "a slow head": (b"GET / HTTP/1.1\r\n", 408, False),
}
OF_A_BACKEND = b"HTTP/1.1 %d Odd\r\nX-Request-Id: its-own\r\nx-request-id: twice\r\nContent-Length: 2\r\n\r\n{}"


async def test_a_failure_of_the_gateway_is_found_by_its_id() -> None:
    """The answer says that the log tells why."""

    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("a fault of the gateway's")

    app = web.Application()
    app[INTAKES] = {}
    app.router.add_get("/", fail)
    serving = Server(app, Settings(server=ServerSettings(port=0)), Metrics())
    await serving.start()
    with capture_logs() as lines:
        heard = await talk(serving.port, ask(b"/", b"X-Request-Id: ticket"), silence=5)
    await serving.close()
    assert (heard.statuses, HEADER.findall(heard.raw)) == ([500], [b"ticket"])
    assert b'"gateway_error"' in heard.raw
    (failed,) = [line for line in lines if line["event"] == "request_failed"]
    assert (failed["request_id"], failed["error"]) == ("ticket", 'RuntimeError("a fault of the gateway\'s")')
    assert isinstance(failed["exc_info"], RuntimeError)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(shared_lab: Lab) -> AsyncIterator[tuple[GatewayProcess, Recorder]]:
    """A gateway, and a backend that has ids of its own."""
    backend = Recorder()
    await backend.start()
    backend.answers["/extensions/of-backend.js"] = OF_A_BACKEND % 200
    backend.answers["/extensions/refused.js"] = OF_A_BACKEND % 404
    settings = {"server__header_timeout": 1, "server__max_connections_per_address": 8, "cors__origins": APP}
    gateway = await start(shared_lab, backend.url, up=0, probe__interval=30, **settings)
    shared_lab.http.headers["X-API-Key"] = KEYS["boss"]
    await passes_on(shared_lab, gateway.url)
    yield gateway, backend
    await gateway.stop()
    await backend.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_no_answer_lacks_it(pair: tuple[GatewayProcess, Recorder]) -> None:
    """Whoever writes it; and each has a line in the log, with the client's address and the name of its key."""
    gateway, backend = pair
    backend.seen.clear()
    brought = {name: f"{number}.of:this+test/=_-" for number, name in enumerate(KINDS)}
    ids: dict[str, str] = {}

    async def look(name: str) -> None:
        raw, status, is_read = KINDS[name]
        line, end, rest = raw.partition(b"\r\n")
        if is_read:
            raw = line + end + b"X-Request-Id: " + brought[name].encode() + end + rest
        heard = await talk(gateway.port, raw, silence=5 if status != 101 else 0.2)
        assert heard.statuses == [status], (name, heard)
        (found,) = HEADER.findall(heard.raw.partition(b"\r\n\r\n")[0])
        ids[name] = found.decode()
        assert ids[name] == brought[name] if is_read else MADE.fullmatch(ids[name]), (name, found)

    for first in range(0, len(KINDS), 6):
        await asyncio.gather(*(look(name) for name in list(KINDS)[first : first + 6]))

    async def lines() -> bool:
        return {line["request_id"] for line in gateway.log_lines() if line["event"] == "http"} >= set(ids.values())

    await until(lines, what="a line for each")
    told = {line["request_id"]: line for line in gateway.log_lines() if line["event"] == "http"}
    for name, (raw, status, _) in KINDS.items():
        line = told[ids[name]]
        assert (line["status"], line["client_address"]) == (status, "127.0.0.1"), name
        key = "anna" if KEY in raw else "boss" if BOSS in raw else None
        assert line["key"] in (key, None), name
        assert key is None or line["key"] == key or status in (400, 405), line
    # The backend hears of none.
    assert len(backend.asked) == 2
    assert not [seen for seen in backend.seen if "x-request-id" in seen.headers]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_of_another_origin_may_read_it(pair: tuple[GatewayProcess, Recorder]) -> None:
    heard = await talk(pair[0].port, ask(b"/queue", KEY, ORIGIN), silence=5)
    (exposed,) = re.findall(rb"Access-Control-Expose-Headers: ([^\r]*)", heard.raw)
    assert b"X-Request-Id" in exposed.split(b",")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_connection_that_is_refused_is_told_one(pair: tuple[GatewayProcess, Recorder]) -> None:
    """No request of it is read, so no line tells of it."""
    writers = []
    refused = b""
    while not refused:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair[0].port)
        writers.append(writer)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        refused = head if b" 429 " in head else b""
    (found,) = HEADER.findall(refused)
    assert MADE.fullmatch(found.decode())
    for writer in writers:
        writer.close()
