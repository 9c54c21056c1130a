"""Whose time is up, told as what happens on a connection and when."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gateway.web.server.timeouts import BARRED_SECONDS, SOCKET_BURST, SOCKET_RATE, ConnectionTimeouts


@dataclass(frozen=True, slots=True)
class Limits:
    """Short ones."""

    header_timeout: float = 10
    body_timeout: float = 30
    body_rate: int = 100
    send_timeout: float = 60


LIMITS = Limits()


def overdue(pace: ConnectionTimeouts, now: float, *, reads_body: bool = False, is_read: bool = True) -> str | None:
    """What is said of it at a time."""
    return pace.overdue(now, LIMITS, reads_body=reads_body, is_read=is_read)


def test_headers() -> None:
    """The first request's count from the connection, a later one's from its first byte; a handler's time is its own."""
    pace = ConnectionTimeouts(0)
    pace.made(5)
    assert overdue(pace, 15) is None
    assert overdue(pace, 15.1) == "header"
    pace.began(15, is_upgrade=False)
    assert overdue(pace, 10_000) is None
    pace.ended(10_000)
    assert overdue(pace, 20_000) is None
    pace.first_byte(20_000)
    assert overdue(pace, 20_010) is None
    assert overdue(pace, 20_010.1) == "header"


def test_a_body_that_brings_enough_may_take_as_long_as_it_likes() -> None:
    pace = ConnectionTimeouts(0)
    pace.began(0, is_upgrade=False)
    for now in range(1, 10_000):
        pace.received += 100
        assert overdue(pace, now, reads_body=True) is None


@pytest.mark.parametrize("rate", [0, 1, 90])
def test_a_body_that_brings_too_little(rate: int) -> None:
    pace = ConnectionTimeouts(0)
    pace.began(0, is_upgrade=False)
    said = []
    for now in range(1, 40):
        pace.received += rate
        said.append(overdue(pace, now, reads_body=True))
    assert said.index("body") == 29


def test_a_silence_is_not_the_clients_while_nobody_reads() -> None:
    pace = ConnectionTimeouts(0)
    pace.began(0, is_upgrade=False)
    for now in range(1, 1_000):
        assert overdue(pace, now, reads_body=True, is_read=False) is None
    assert overdue(pace, 1_028, reads_body=True) is None
    assert overdue(pace, 1_029, reads_body=True) == "body"


def test_readers() -> None:
    """One that does not read, whatever it asked for; and one that was told to go and does not."""
    pace = ConnectionTimeouts(0)
    pace.began(0, is_upgrade=True)
    pace.stalled_since = 5
    assert not pace.is_waiting
    assert overdue(pace, 65) is None
    assert overdue(pace, 65.1) == "send"
    pace.stalled_since = None
    assert overdue(pace, 65.1) is None
    pace.leaving_since = 70
    assert overdue(pace, 130) is None
    assert overdue(pace, 130.1) == "send"


def test_sockets() -> None:
    """A burst, and a little all the time, is borne; more all the time is not."""
    pace = ConnectionTimeouts(0)
    pace.began(0, is_upgrade=True)
    pace.received += SOCKET_BURST
    assert overdue(pace, 1) is None
    for now in range(2, 1_000):
        pace.received += SOCKET_RATE
        assert overdue(pace, now) is None
    said = set()
    for now in range(1_000, 2_000):
        pace.received += 2 * SOCKET_RATE
        said.add(overdue(pace, now))
    assert "flood" in said


def test_a_key_that_holds_no_more() -> None:
    """Who revokes his own key hears of it; a connection on which another key comes goes on."""
    pace = ConnectionTimeouts(0)
    pace.began(0, is_upgrade=False)

    def barred(now: float, *, is_let_in: bool) -> str | None:
        return pace.overdue(now, LIMITS, reads_body=False, is_read=True, is_let_in=is_let_in)

    assert barred(100, is_let_in=True) is None
    assert barred(101, is_let_in=False) is None
    assert barred(101 + BARRED_SECONDS, is_let_in=False) is None
    assert barred(102, is_let_in=True) is None
    assert barred(110, is_let_in=False) is None
    assert barred(110.1 + BARRED_SECONDS, is_let_in=False) == "key"
