"""What a caller without a key may have the gateway do: nothing of it reaches a backend, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.settings import Settings
from gateway.tenants.credentials import key_in_cookies
from gateway.tenants.roles import TABLE, Access, Roles, plain
from gateway.web.http.allowed_hosts import configured_hosts
from gateway.web.server import request_smuggling
from gateway.web.server.request_smuggling import MAX_HOSTS_BYTES, MAX_PARTS, MAX_QUERY_FIELDS, fault
from tests.security.recorder import Recorder, passes_on, talk
from tests.support.lab import GatewayProcess, Lab
from tests.support.security_world import KEYS, start

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY = b"X-API-Key: " + KEYS["anna"].encode()
# Paths that are sent, and connections that send them.
PATHS, CLIENTS = 2_000, 4
BOSS = b"X-API-Key: " + KEYS["boss"].encode()


@dataclass(frozen=True, slots=True)
class Pair:
    """A gateway with keys, and the backend that keeps what it is sent."""

    gateway: GatewayProcess
    backend: Recorder

    async def statuses(self, raw: bytes) -> list[int]:
        """The status of each answer."""
        return (await talk(self.gateway.port, raw, silence=2)).statuses


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_pair(shared_lab: Lab) -> AsyncIterator[Pair]:
    """Both, started once."""
    backend = Recorder()
    await backend.start()
    gateway = await start(shared_lab, backend.url, up=0, probe__interval=30)
    shared_lab.http.headers["X-API-Key"] = KEYS["boss"]
    await passes_on(shared_lab, gateway.url)
    yield Pair(gateway, backend)
    await gateway.stop()
    await backend.close()


@pytest.fixture
def pair(shared_pair: Pair) -> Pair:
    """The same, without what the backend heard before."""
    shared_pair.backend.seen.clear()
    return shared_pair


def ask(target: bytes, *headers: bytes, method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A request that closes its connection."""
    lines = b"".join(header + b"\r\n" for header in (b"Host: x", b"Connection: close", *headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method, target, lines, body)


CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n"
HEADS: dict[str, tuple[bytes, int]] = {
    "a long target": (ask(b"/" + b"a" * 8189), 401),
    "one that is too long": (ask(b"/" + b"a" * 8190), 414),
    "one by far": (ask(b"/" + b"a" * 60_000), 414),
    "many parts": (ask(b"/a" * MAX_PARTS), 401),
    "too many": (ask(b"/a" * (MAX_PARTS + 1)), 414),
    "slashes alone": (ask(b"/" * 8000), 414),
    "an absolute URL of many": (ask(b"http://x" + b"/a" * 1000), 414),
    "many fields": (ask(b"/queue?a" + b"&a" * MAX_QUERY_FIELDS), 401),
    "too many fields": (ask(b"/queue?a" + b"&a" * (MAX_QUERY_FIELDS + 1)), 414),
    "slashes in the query": (ask(b"/queue?a=" + b"/" * 3000), 401),
    "a long header": (ask(b"/queue", b"Cookie: " + b"a" * 16_000), 401),
    "one that is too long by itself": (ask(b"/queue", b"Cookie: " + b"a" * 17_000), 431),
    "31 KB of headers": (ask(b"/queue", *[b"X-A: " + b"a" * 7800] * 4), 401),
    "33 KB": (ask(b"/queue", *[b"X-A: " + b"a" * 8200] * 4), 431),
    "a long Host": (ask(b"/queue").replace(b"Host: x", b"Host: " + b"a" * 300), 400),
    "a long Content-Type": (ask(b"/prompt", b"Content-Type: a/b" + b";a=b" * 70, method=b"POST"), 431),
    "our names": (ask(b"/manifest.json/" + b"a/" * 300), 414),
}
BODIES: dict[str, tuple[bytes, int]] = {
    "a POST in chunks": (ask(b"/prompt", CHUNKED, method=b"POST", body=CHUNKS), 401),
    "the manifest in chunks": (ask(b"/manifest.json", CHUNKED, body=CHUNKS), 411),
    "one chunk": (ask(b"/manifest.json", CHUNKED, body=b"1\r\na\r\n0\r\n\r\n"), 411),
    "the manifest with much": (ask(b"/manifest.json", b"Content-Length: 70000", body=b"a" * 70_000), 413),
    "a sign-in in chunks": (ask(b"/gateway/signin", CHUNKED, method=b"POST", body=CHUNKS), 411),
    "a sign-out with much": (ask(b"/gateway/signout", b"Content-Length: 99999999", method=b"POST"), 413),
    "health in chunks": (ask(b"/healthz", CHUNKED, body=CHUNKS), 411),
    "with a key, a GET in chunks": (ask(b"/extensions/a.js", KEY, CHUNKED, body=CHUNKS), 411),
    "with a key, a GET with much": (ask(b"/queue", KEY, b"Content-Length: 99999999"), 413),
    "with a key, a HEAD in chunks": (ask(b"/extensions/a.js", KEY, CHUNKED, method=b"HEAD", body=CHUNKS), 411),
    "with a key, a DELETE in chunks": (ask(b"/userdata/a", KEY, CHUNKED, method=b"DELETE", body=CHUNKS), 411),
}


async def test_heads_have_bounds(pair: Pair) -> None:
    """As a caller learns who asks for too much; none reaches a backend."""
    found = {name: await pair.statuses(raw) for name, (raw, _) in HEADS.items()}
    assert found == {name: [status] for name, (_, status) in HEADS.items()}
    heard = await talk(pair.gateway.port, ask(b"/" + b"a" * 60_000), silence=2)
    assert b'"type": "malformed_request"' in heard.raw.replace(b'":"', b'": "')
    # Also behind another request, and with a key.
    first = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert await pair.statuses(first + ask(b"/a" * 1000)) == [200, 414]
    assert await pair.statuses(ask(b"/a" * 1000, KEY)) == [414]
    assert pair.backend.asked == []


async def test_bodies_that_nothing_reads_are_refused(pair: Pair) -> None:
    found = {name: await pair.statuses(raw) for name, (raw, _) in BODIES.items()}
    assert found == {name: [status] for name, (_, status) in BODIES.items()}
    assert pair.backend.asked == []


async def test_small_bodies_on_odd_methods_do_no_harm(pair: Pair) -> None:
    """Some clients send `{}` or an empty body with each request: the connection goes on, the backend hears of none."""
    raw = b""
    for line, length in (
        (b"GET /queue", 0),
        (b"GET /queue", 2),
        (b"GET /extensions/a", 2),
        (b"GET /extensions/b", 60_000),
    ):
        head = b"%b HTTP/1.1\r\nHost: x\r\n%b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        raw += head % (line, KEY, length) + b"{" * length
    raw += ask(b"/any", BOSS, b"Content-Length: 2", method=b"DELETE", body=b"{}")
    assert await pair.statuses(raw) == [200] * 5
    assert [(seen.line.split()[0], seen.body) for seen in pair.backend.asked] == [
        ("GET", b""),
        ("GET", b""),
        ("DELETE", b"{}"),
    ]
    assert "content-type" not in pair.backend.asked[0].headers


async def test_a_body_is_asked_for_when_its_sender_is_known(pair: Pair) -> None:
    expects = (b"Expect: 100-continue", b"Content-Length: 11")
    refused = await talk(pair.gateway.port, ask(b"/anything", *expects, method=b"POST"), silence=2)
    assert (refused.statuses, refused.closed) == ([401], True)
    heard = await talk(pair.gateway.port, ask(b"/any", BOSS, *expects, method=b"POST", body=b"hello world"), silence=2)
    assert heard.statuses == [100, 200]
    assert [seen.body for seen in pair.backend.asked] == [b"hello world"]
    odd = ask(b"/any", BOSS, b"Expect: money", b"Content-Length: 11", method=b"POST", body=b"hello world")
    assert await pair.statuses(odd) == [417]


async def test_a_flood_without_a_key_is_cut_off(pair: Pair) -> None:
    """Of 60 MB no more is taken than the kernel holds, and a head that does not end is not waited for."""

    async def taken_of(head: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.gateway.port)
        writer.write(head)
        taken, heard = 0, b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                heard = await reader.readuntil(b"\r\n")
                while taken < 60:
                    writer.write(b"f4240\r\n" + b"a" * 1_000_000 + b"\r\n")
                    await writer.drain()
                    taken += 1
        writer.transport.abort()
        return taken, heard[9:12]

    heads = (
        b"POST /prompt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Length: 99000000\r\n\r\n",
        b"GET /manifest.json HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /queue HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000,
    )
    found = await asyncio.gather(*map(taken_of, heads))
    assert [status for _, status in found] == [b"401", b"401", b"411", b"431"]
    assert max(taken for taken, _ in found) < 40
    assert pair.backend.asked == []


async def test_methods_that_nobody_knows(pair: Pair) -> None:
    """The gateway refuses them itself, because aiohttp's refusals leave garbage that takes long to collect."""
    for method in (b"PROPFIND", b"OPTIONS"):
        heard = await talk(pair.gateway.port, ask(b"/queue", method=method), silence=2)
        assert heard.statuses == [405]
        assert b"Allow: GET, POST, PUT, PATCH, DELETE, HEAD\r\n" in heard.raw
        assert b"method_not_allowed" in heard.raw
    assert pair.backend.asked == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(shared_lab: Lab) -> AsyncIterator[GatewayProcess]:
    """A gateway whose metrics need no key, and that waits for no head."""
    options = ("--api-key", KEYS["anna"])
    settings = {"server__header_timeout": 0.2}
    gateway = GatewayProcess(shared_lab.directory / "open", ["http://127.0.0.1:1"], options, settings)
    shared_lab.servers.append(gateway)
    await gateway.start()
    yield gateway
    await gateway.stop()


async def test_other_versions_are_refused_in_a_version_that_is_spoken(pair: Pair) -> None:
    for version, answered in ((b" HTTP/2.0", b"HTTP/1.1"), (b" HTTP/1.2", b"HTTP/1."), (b"", b"HTTP/1.0")):
        heard = await talk(pair.gateway.port, b"GET /queue%b\r\nHost: x\r\n\r\n" % version, silence=5)
        assert heard.raw.startswith(answered), version
        assert heard.raw.split()[1] in (b"400", b"505"), version


async def test_handshakes_that_are_not_ascii_are_refused(pair: Pair) -> None:
    """With a key, because nobody else gets that far."""
    good = {
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Version": b"13",
        b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
    }
    for name in good:
        headers = b"".join(b"%b: %b\r\n" % each for each in {**good, name: b"\xff"}.items())
        assert await pair.statuses(b"GET /ws HTTP/1.1\r\nHost: x\r\n%b\r\n%b\r\n" % (KEY, headers)) == [400], name


async def test_a_refused_head_is_answered_once(gateway: GatewayProcess) -> None:
    """Its connection waits for the client to read that; meanwhile the time for headers is over, for others as well."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /" + b"a" * 10_000)
    heard = await talk(gateway.port, b"GET /a", silence=20)
    assert (heard.statuses, heard.closed) == ([408], True)
    refused = await reader.read()
    assert refused.startswith(b"HTTP/1.1 414 ")
    assert refused.count(b"HTTP/1.1") == 1
    writer.close()
    assert (await talk(gateway.port, b"GET /a", silence=20)).closed


async def test_metrics_are_made_once_a_second_for_all_without_a_key(shared_lab: Lab, gateway: GatewayProcess) -> None:
    """To make them costs more than a stranger may cost."""

    async def scrape() -> str:
        async with shared_lab.http.get(f"{gateway.url}/metrics") as answer:
            assert answer.status == 200
            return await answer.text()

    first, *others = await asyncio.gather(*(scrape() for _ in range(20)))
    assert "comfyui_gateway_connections" in first
    assert set(others) == {first}


def kept(act: Callable[[int], object], times: int = 100) -> int:
    """How many bytes it leaves behind to do something with different values."""
    act(0)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(1, times):
        act(n)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


async def test_no_path_is_kept() -> None:
    roles = Roles()
    assert kept(lambda n: roles.of_path("GET", f"/{n}/" + "x/" * 190)) < 20_000


async def test_a_gateway_keeps_no_path(gateway: GatewayProcess) -> None:
    """Its memory is where it was after as many different paths as it is sent."""

    async def send(paths: range) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        for path in paths:
            # As many parts as are let through, and as many bytes.
            writer.write(b"GET /%d%b HTTP/1.1\r\nHost: x\r\n\r\n" % (path, (b"/" + b"a" * 39) * 199))
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: ([0-9]+)", head)
            assert head.startswith(b"HTTP/1.1 401 ")
            assert length is not None
            await reader.readexactly(int(length[1]))
        writer.close()

    async def send_at_once(paths: range) -> int:
        await asyncio.gather(*(send(paths[start::CLIENTS]) for start in range(CLIENTS)))
        return psutil.Process(gateway.pid).memory_info().rss

    before = await send_at_once(range(300))
    after = await send_at_once(range(300, 300 + PATHS))
    assert after - before < 6_000_000, f"{PATHS} paths have {PATHS * 8_000} bytes"


async def test_of_hosts_little_is_kept() -> None:
    def message(host: str) -> RawRequestMessage:
        headers = CIMultiDictProxy(CIMultiDict({"Host": host}))
        return RawRequestMessage("GET", "/", HttpVersion11, headers, (), False, None, False, False, URL("/"))

    hosts = configured_hosts(Settings())
    for long in (200, 20_000):
        assert kept(lambda n, long=long: fault(message("a" * long + str(n)))) < 100 * MAX_HOSTS_BYTES
        assert kept(lambda n, long=long: hosts.allows("a" * long + str(n))) < 100 * MAX_HOSTS_BYTES
    assert len(request_smuggling._hosts_known) <= request_smuggling.MAX_HOSTS


async def test_the_table_decides_as_if_it_were_read_from_top_to_bottom() -> None:
    """The rows that may be about a path are looked up by its first part."""
    roles = Roles()
    paths = [row.path.replace("/**", end) for row in TABLE for end in ("", "/x", "/x/y")]
    paths += ["/api" + path for path in paths] + ["", "/", "/api", "//", "/new/x", "/{x}"]
    every = sorted(TABLE, key=lambda row: -len(plain(row.path.removesuffix("/**")).parts))
    for path in paths:
        for method in ("GET", "POST", "DELETE"):
            found, access = plain(path), roles.of_path(method, path)
            fitting = []
            for row in every:
                own, is_below = plain(row.path.removesuffix("/**")), row.path.endswith("/**")
                is_first = found.parts[: len(own.parts)] == own.parts
                if is_first and row.fits(method) and (is_below or found.parts == own.parts):
                    fitting.append((len(own.parts), row.access))
            longest = {each for length, each in fitting if length == fitting[0][0]}
            assert access in longest | {Access.USERS, Access.ADMINS}, (method, path)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("comfyui_gateway_key=k", "k"),
        ("a=b; comfyui_gateway_key=k; c=d", "k"),
        ("a=b;comfyui_gateway_key = k ;c=d", "k"),
        ('comfyui_gateway_key="k"', "k"),
        ("comfyui_gateway_key=a; comfyui_gateway_key=b", "b"),
        ("comfyui_gateway_key=; a=b", None),
        ("comfyui_gateway_key", None),
        ("xcomfyui_gateway_key=k", None),
        ("a=comfyui_gateway_key=k", None),
        ("comfyui_gateway_key2=k", None),
        ("", None),
        (";;;===", None),
    ],
)
async def test_our_cookie_is_found_among_others(header: str, key: str | None) -> None:
    assert key_in_cookies(header) == key
