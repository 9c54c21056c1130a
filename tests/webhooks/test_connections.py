"""Connections that are used again: by the same tenant, for the same checked addresses, or not at all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from yarl import URL

from gateway.webhooks import connections
from gateway.webhooks.connections import Clients
from gateway.webhooks.receivers import Receiver, Receivers
from gateway.webhooks.sender import Failure, Outcome, Sender
from gateway.webhooks.urls import Rules
from tests.support.receivers import RawReceiver, Reply, receiving

FIRST, SECOND, FOREIGN = "127.0.0.2", "127.0.0.3", "127.0.0.4"
RULES = Rules(allow_http=True, allow_networks=(ip_network(f"{FIRST}/32"), ip_network(f"{SECOND}/32")))
OK = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 2\r\n\r\nok"
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def sender(*answers: tuple[str, ...]) -> Sender:
    """A sender whose lookups have these answers, one after the other; the last one stays."""
    pending = list(answers or [(FIRST,)])

    async def lookup(host: str, tenant: str) -> tuple[str, ...]:
        return pending.pop(0) if len(pending) > 1 else pending[0]

    return Sender(Receivers(RULES, lookup, lambda: (), lambda: ()), 30.0, 10.0, TLS)


async def post(using: Sender, receiver: RawReceiver, tenant: str = "t", host: str = "receiver.test") -> Outcome:
    return await using.post(f"http://{host}:{receiver.port}/", {"webhook-id": "evt_1"}, b"{}", tenant)


def answering(*answers: bytes) -> Reply:
    """Give these answers to the requests of a connection, and close it then."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number, answer in enumerate(answers):
            if number:
                await reader.readuntil(b"{}")
            writer.write(answer)
            await writer.drain()

    return reply


async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer all requests of a connection until its client closes it."""
    writer.write(OK)
    while await reader.read(2**16):
        writer.write(OK)


async def statuses(using: Sender, receiver: RawReceiver, tenants: Iterable[str]) -> list[int | None]:
    return [(await post(using, receiver, tenant)).status for tenant in tenants]


async def test_a_tenants_connection_is_used_again_and_no_cookie_kept() -> None:
    async with receiving(stay) as receiver:
        using = sender()
        assert await statuses(using, receiver, "ttt") == [200] * 3
        assert receiver.connections == 1
        assert await statuses(using, receiver, "utut") == [200] * 4
        assert (await post(using, receiver, host="other.test")).status == 200
        # One of the tenant, one of the other, one for the other name.
        assert receiver.connections == 3
        assert not any("cookie" in headers for headers, _ in receiver.requests)
        await using.close()
        await receiver.closed.wait()


async def test_a_name_that_moves_takes_its_connections_along() -> None:
    """An address is connected to only by attempts that have checked it, and an idle connection changes nothing."""
    async with (
        receiving(stay) as first,
        receiving(stay, host=SECOND, port=first.port) as second,
        receiving(stay, host=FOREIGN, port=first.port) as foreign,
    ):
        using = sender((FIRST,), (SECOND,), (FOREIGN,), (FIRST,), (FIRST, FOREIGN), (SECOND,))
        errors = [(await post(using, first)).error for _ in range(6)]
        refused = Failure.REFUSED_ADDRESS
        assert errors == ["", "", refused, "", refused, ""]
        assert (first.connections, second.connections, foreign.connections) == (1, 1, 0)
        assert len(first.requests) == len(second.requests) == 1
        await using.close()


@pytest.mark.parametrize("second", [b"", b"HTTP/1.1 ", b"SSH-2.0\r\n"])
async def test_a_connection_that_its_receiver_ends_is_replaced_by_one_new_one(second: bytes) -> None:
    """It may end it at the very moment of the next request."""
    async with receiving(answering(OK, second)) as receiver:
        using = sender()
        assert await statuses(using, receiver, "ttt") == [200] * 3
        assert receiver.connections == 3
        await using.close()
    async with receiving(answering(b"")) as receiver:
        using = sender()
        outcome = await post(using, receiver)
        assert (outcome.error, receiver.connections) == (Failure.PROTOCOL, 1)


GONE = OK.replace(b"200", b"410")


async def test_an_answer_that_nobody_asked_for_is_none_of_the_next_event() -> None:
    async with receiving(answering(OK + GONE, OK)) as receiver:
        using = sender()
        assert await statuses(using, receiver, "ttt") == [200] * 3
        assert receiver.connections == 3
        await using.close()


async def test_a_receiver_that_talks_while_nobody_asks_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its answers would wait in memory, as many as it sends, and be taken for those of the next events."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await written.wait()
        while not writer.is_closing():
            writer.write(GONE * 100)
            await writer.drain()

    monkeypatch.setattr(connections, "IDLE_SECONDS", 1000.0)
    written = asyncio.Event()
    async with receiving(talk) as receiver:
        using = sender()
        assert (await post(using, receiver)).status == 200
        written.set()
        await asyncio.wait_for(receiver.closed.wait(), 10)
        assert (await post(using, receiver)).status == 200
        assert receiver.connections == 2
        await using.close()


async def test_heads_without_end_are_few() -> None:
    """Each is parsed, so a receiver that sends them as fast as it can would take all of the processor."""
    sent = 0

    async def hint(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while not writer.is_closing():
            sent += 100
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
            await writer.drain()

    async with receiving(hint) as receiver:
        using = sender()
        assert (await post(using, receiver)).error is Failure.PROTOCOL
        await receiver.closed.wait()
        await using.close()
    # Beside those that are parsed, the buffers of the two sockets hold some.
    assert sent < 500_000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
async def test_a_connection_whose_answer_goes_on_is_closed(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.webhooks.sender.ANSWER_SECONDS", 0.05)

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()

    async with receiving(wait) as receiver:
        using = sender()
        assert (await post(using, receiver)).status in (200, 101)
        await receiver.closed.wait()
        assert not using._clients._by_age
        await using.close()


async def test_idle_connections_are_few_and_do_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_IDLE", 2)
    async with receiving(stay) as receiver:
        using = sender()
        assert await statuses(using, receiver, "abc") == [200] * 3
        await receiver.closed.wait()
        assert [each.key.tenant for each in using._clients._by_age] == ["b", "c"]
        await using.close()
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.01)
    async with receiving(stay) as receiver:
        using = sender()
        await post(using, receiver)
        await receiver.closed.wait()
        assert not using._clients._by_age
        assert not using._clients._idle
        await using.close()


async def test_a_connection_that_is_always_in_use_is_replaced_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its certificate was verified when it began."""
    monkeypatch.setattr(connections, "MAX_AGE_SECONDS", 0.0)
    async with receiving(stay) as receiver:
        using = sender()
        assert await statuses(using, receiver, "ttt") == [200] * 3
        assert receiver.connections == 3
        await using.close()


async def test_what_is_given_back_after_the_end_is_closed() -> None:
    clients = Clients(TLS, 1.0)
    receiver = Receiver(URL("http://receiver.test/"), (ip_address(FIRST),), is_inner=True)
    client = clients.take(receiver, "t")
    await clients.close()
    await clients.give_back(client)
    assert client._session.closed
