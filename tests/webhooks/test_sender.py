"""Deliveries over real sockets: only the checked address is ever connected to, whatever names and receivers do."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trustme

from gateway.webhooks.connections import MAX_ANSWER, _Sockets
from gateway.webhooks.receivers import Receivers
from gateway.webhooks.sender import (
    MAX_RETRY_AFTER,
    UNREACHABLE,
    Failure,
    Outcome,
    Sender,
    retry_after,
)
from gateway.webhooks.urls import Rules
from tests.support.raw_servers import start_raw_server
from tests.support.receivers import RawReceiver, receiving

BODY = b'{"type": "webhook.test"}'
HEADERS = {"webhook-id": "evt_1", "webhook-timestamp": "5"}
# One address of loopback stands for a receiver in the LAN; all other inner addresses are refused.
ALLOWED, FOREIGN = "127.0.0.2", "127.0.0.3"
# State of a TCP connection whose other end was closed (linux/tcp_states.h).
CLOSE_WAIT = 8
RULES = Rules(allow_http=True, allow_networks=(ip_network(f"{ALLOWED}/32"),))


def sender(
    *answers: tuple[str, ...], timeout: float = 30.0, connect_timeout: float = 10.0, tls: ssl.SSLContext | None = None
) -> Sender:
    """A sender for whose lookups the answers are given, one after the other; the last one stays."""
    pending = list(answers or [(ALLOWED,)])

    async def lookup(host: str, tenant: str) -> tuple[str, ...]:
        return pending.pop(0) if len(pending) > 1 else pending[0]

    receivers = Receivers(RULES, lookup, lambda: (), lambda: ())
    # To read the authorities of the system takes long.
    made = Sender(receivers, timeout, connect_timeout, tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    _made.append(made)
    return made


_made: list[Sender] = []


@pytest.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    """Close each sender at the end."""
    yield
    while _made:
        await _made.pop().close()


async def post(receiver: RawReceiver, using: Sender | None = None, host: str = "receiver.test") -> Outcome:
    """Deliver to a receiver by plain HTTP, by a name."""
    return await (using or sender()).post(f"http://{host}:{receiver.port}/hook?a=b", HEADERS, BODY)


async def test_a_delivery() -> None:
    async with receiving() as receiver:
        outcome = await post(receiver)
    assert (outcome.status, outcome.error, outcome.shown(), outcome.is_inner) == (204, Failure.NONE, "", True)
    assert receiver.first_lines == ["POST /hook?a=b HTTP/1.1"]
    headers, body = receiver.requests[0]
    assert body == BODY
    assert headers == HEADERS | {
        "host": f"receiver.test:{receiver.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-length": str(len(BODY)),
        "content-type": "application/json",
        "user-agent": "comfyui-gateway-webhooks",
    }


@pytest.mark.parametrize(
    ("head", "status", "error", "wait"),
    [
        ("200 OK", 200, Failure.NONE, None),
        ("410 Gone", 410, Failure.NONE, None),
        ("429 Slow\r\nRetry-After: 120", 429, Failure.NONE, 120),
        ("503 Away\r\nRetry-After: soon", 503, Failure.NONE, None),
        ("103 Early Hints\r\n\r\nHTTP/1.1 500 Error", 500, Failure.NONE, None),
        ("101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade", 101, Failure.NONE, None),
        ("304 Not Modified", 304, Failure.REDIRECT, None),
    ],
)
async def test_statuses(head: str, status: int, error: Failure, wait: float | None) -> None:
    async with receiving(f"HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n".encode()) as receiver:
        outcome = await post(receiver)
    assert (outcome.status, outcome.error, outcome.retry_after) == (status, error, wait)
    assert not outcome.shown() or outcome.shown() == "redirect"


async def test_no_redirect_is_followed() -> None:
    for status in (301, 302, 303, 307, 308):
        async with receiving() as second:
            answer = (
                f"HTTP/1.1 {status} Moved\r\nLocation: http://{ALLOWED}:{second.port}/\r\nContent-Length: 0\r\n\r\n"
            )
            async with receiving(answer.encode()) as first:
                outcome = await post(first)
        assert (outcome.status, outcome.error, outcome.shown()) == (status, Failure.REDIRECT, "redirect")
        assert (first.connections, second.connections) == (1, 0)


async def test_answers_that_are_not_http() -> None:
    for answer in (
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"+OK redis\r\n",
        b"HTTP/1.1 200 " + b"a" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(1000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ):
        async with receiving(answer) as receiver:
            outcome = await post(receiver)
        assert (outcome.status, outcome.error, outcome.shown()) == (None, Failure.PROTOCOL, UNREACHABLE), answer[:80]


async def test_a_head_that_never_ends() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not writer.is_closing():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.01)

    async def hint(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with receiving(drip) as dripping, receiving(hint) as hinting:
        using = sender(timeout=0.2)
        outcomes = await asyncio.gather(post(dripping, using), post(hinting, using))
        assert [outcome.error for outcome in outcomes] == [Failure.TIMEOUT] * 2
        await asyncio.gather(dripping.closed.wait(), hinting.closed.wait())


@pytest.mark.parametrize("is_fast", [True, False])
async def test_a_body_that_never_ends(is_fast: bool) -> None:
    """The status has come, and counts. The connection is closed after a little of the body, or a little while."""
    count = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"a" * (MAX_ANSWER if is_fast else 1))
            await writer.drain()
            count += 1
            await asyncio.sleep(0 if is_fast else 0.01)

    async with receiving(flood) as receiver:
        outcome = await post(receiver)
        assert (outcome.status, outcome.error) == (200, Failure.NONE)
        await receiver.closed.wait()
    # Beside those that are read, the buffers of the two sockets hold some.
    assert count < 1000


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 99\r\n\r\na", b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"]
)
async def test_a_body_that_is_cut_or_packed_changes_nothing(rest: bytes) -> None:
    """Nothing is unpacked, because 40 bytes of gzip may be 40 kB."""
    async with receiving(b"HTTP/1.1 200 OK\r\n" + rest) as receiver:
        assert (await post(receiver)).status == 200


async def test_no_connection() -> None:
    async with receiving() as receiver:
        pass
    outcome = await post(receiver)
    assert (outcome.status, outcome.error, outcome.shown()) == (None, Failure.CONNECT, UNREACHABLE)


async def test_a_name_that_changes_its_address() -> None:
    """Each attempt looks the name up, and connects to what it then checked. Nobody else hears anything."""
    async with receiving() as receiver, receiving(host=FOREIGN, port=receiver.port) as foreign:
        using = sender(
            (ALLOWED,), (FOREIGN,), (ALLOWED,), ("::ffff:127.0.0.3",), (ALLOWED, FOREIGN), (FOREIGN, ALLOWED)
        )
        errors = [(await post(receiver, using)).error for _ in range(6)]
        assert errors == ["", "refused_address", "", "refused_address", "refused_address", "refused_address"]
        assert (receiver.connections, foreign.connections) == (2, 0)


async def test_spellings_of_a_foreign_address() -> None:
    """Whatever the URL, nothing connects there, nor to anything else."""
    hosts = [
        FOREIGN,
        "127.3",
        "2130706435",
        "0x7f.3",
        "[::ffff:127.0.0.3]",
        "[::ffff:7f00:3]",
        "127.0.0.3.",
        "１２７.0.0.3",
        "a@127.0.0.3",
        "127.0.0.2@127.0.0.3",
        "127.0.0.3#@127.0.0.2",
        "127.0.0.3\\@127.0.0.2",
        "[::127.0.0.3]",
        "[64:ff9b::127.0.0.3]",
    ]
    async with receiving() as receiver, receiving(host=FOREIGN, port=receiver.port) as foreign:
        for host in hosts:
            outcome = await sender().post(f"http://{host}:{receiver.port}/", HEADERS, BODY)
            assert (outcome.error, outcome.shown(), outcome.status) == (Failure.REFUSED_ADDRESS, UNREACHABLE, None), (
                host
            )
        assert (receiver.connections, foreign.connections) == (0, 0)


async def test_an_address_in_the_url() -> None:
    async with receiving() as receiver:
        assert (await post(receiver, host=ALLOWED)).status == 204
        assert (await post(receiver, host="[::ffff:127.0.0.2]")).status == 204
        assert receiver.connections == 2


async def test_a_lookup_that_hangs() -> None:
    async def lookup(host: str, tenant: str) -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    hanging = Sender(Receivers(RULES, lookup, lambda: (), lambda: ()), timeout=0.05)
    outcome = await hanging.post("http://receiver.test/", HEADERS, BODY)
    assert (outcome.error, outcome.shown()) == (Failure.NO_ADDRESS, UNREACHABLE)


async def test_nothing_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, and no password of a .netrc."""
    (tmp_path / ".netrc").write_text("machine receiver.test login a password b\ndefault login c password d\n")
    async with receiving() as receiver, receiving(host=FOREIGN) as proxy:
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{FOREIGN}:{proxy.port}")
        assert (await post(receiver)).status == 204
        assert proxy.connections == 0
        assert "authorization" not in receiver.requests[0][0]


async def test_a_cancelled_attempt_closes_its_connection() -> None:
    reached = asyncio.Event()

    async def stay(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()

    async with receiving(stay) as receiver:
        attempt = asyncio.create_task(post(receiver))
        await reached.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await receiver.closed.wait()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's context with a certificate for these names."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("host", ["receiver.test", "receiver.test.", "RECEIVER.test", ALLOWED])
async def test_tls_is_verified_for_the_host(authority: trustme.CA, host: str) -> None:
    """Although the connection goes to an address, the receiver hears the name, and its certificate is for the name."""
    context = certified(authority, "receiver.test", ALLOWED)
    heard: list[str | None] = []
    context.sni_callback = lambda _, name, __: heard.append(name)
    async with receiving(tls=context) as receiver:
        using = sender(tls=trusting(authority))
        outcome = await using.post(f"https://{host}:{receiver.port}/", HEADERS, BODY)
        assert (outcome.status, outcome.error, outcome.detail) == (204, Failure.NONE, "")
        assert heard == ([None] if host == ALLOWED else ["receiver.test"])
        await receiver.closed.wait()


@pytest.mark.parametrize("names", [("other.test",), ("*.other.test", ALLOWED)])
async def test_a_certificate_for_another_name(authority: trustme.CA, names: tuple[str, ...]) -> None:
    """A certificate for the address is none for the name."""
    async with receiving(tls=certified(authority, *names)) as receiver:
        url = f"https://receiver.test:{receiver.port}/"
        outcome = await sender(tls=trusting(authority)).post(url, HEADERS, BODY)
        assert (outcome.status, outcome.error, outcome.shown()) == (None, Failure.TLS, UNREACHABLE)
        assert "Hostname mismatch" in outcome.detail
        assert "receiver.test" not in outcome.detail
        assert receiver.requests == []


async def test_an_unknown_authority(authority: trustme.CA) -> None:
    async with receiving(tls=certified(authority, "receiver.test")) as receiver:
        url = f"https://receiver.test:{receiver.port}/"
        outcome = await sender(tls=trusting(trustme.CA())).post(url, HEADERS, BODY)
        assert (outcome.status, outcome.error) == (None, Failure.TLS)
        assert receiver.requests == []


async def test_plain_http_in_place_of_tls(authority: trustme.CA) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await start_raw_server(refuse, ALLOWED, 0)
    url = f"https://receiver.test:{server.sockets[0].getsockname()[1]}/"
    outcome = await sender(tls=trusting(authority)).post(url, HEADERS, BODY)
    assert (outcome.status, outcome.error) == (None, Failure.TLS)
    await server.close()


async def test_a_receiver_that_does_not_finish_tls(authority: trustme.CA) -> None:
    """Neither its beginning nor its end can be drawn out: the attempt ends, and the connection with it."""
    ended = asyncio.Event()

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(2**16):
            pass
        writer.close()
        ended.set()

    server = await start_raw_server(stay_silent, ALLOWED, 0)
    port = server.sockets[0].getsockname()[1]
    using = sender(connect_timeout=0.1, tls=trusting(authority))
    outcome = await using.post(f"https://receiver.test:{port}/", HEADERS, BODY)
    assert outcome.error is Failure.TIMEOUT
    await ended.wait()
    await server.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO")
async def test_a_receiver_that_leaves_the_end_of_tls_unanswered(authority: trustme.CA) -> None:
    """The connection is closed all the same, and not half a minute later."""
    after = asyncio.Event()
    states: list[int] = []

    async def stop_reading(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await after.wait()
        connection = writer.get_extra_info("socket")
        while not states or states[-1] != CLOSE_WAIT:
            states.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
            await asyncio.sleep(0.01)
        transport.abort()

    async with receiving(stop_reading, tls=certified(authority, "receiver.test")) as receiver:
        url = f"https://receiver.test:{receiver.port}/"
        using = sender(tls=trusting(authority))
        assert (await using.post(url, HEADERS, BODY)).status == 200
        await using.close()
        after.set()
        async with asyncio.timeout(5):
            await receiver.closed.wait()


def test_no_socket_is_opened_for_an_address_that_was_not_checked() -> None:
    """An address in a URL passes no resolver."""
    sockets = _Sockets((ip_address(ALLOWED),))
    for address in (FOREIGN, "127.0.0.2.", "receiver.test", "::ffff:127.0.0.2"):
        with pytest.raises(OSError):
            sockets.open((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))
    with sockets.open((socket.AF_INET, socket.SOCK_STREAM, 0, "", (ALLOWED, 80))) as made:
        # Linux takes twice what is asked for. So little is parsed in one turn of the loop, however much is sent.
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * MAX_ANSWER


def test_a_tenant_can_not_tell_inner_ports_apart() -> None:
    for error in set(Failure) - {Failure.NONE, Failure.REDIRECT}:
        assert Outcome(None, 0.1, error=error, is_inner=True).shown() == UNREACHABLE
    public = {error: Outcome(None, 0.1, error=error).shown() for error in Failure}
    assert public[Failure.TLS] == "tls"
    assert public[Failure.REFUSED_ADDRESS] == public[Failure.NO_ADDRESS] == UNREACHABLE


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        (" 30 ", 30),
        ("999999999", MAX_RETRY_AFTER),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 60),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 5000, None),
        ("soon", None),
        ("Thu, 99 Jan 2026 00:01:00 GMT", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after(text, datetime(2026, 1, 1, tzinfo=UTC)) == seconds
