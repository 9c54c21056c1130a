"""Whose word is taken of where a request comes from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.web.http.client_address import TrustedProxies, parse_address

PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "lines", "found"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        # What the caller itself wrote stands on the left.
        ("10.0.0.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.7, 10.9.9.9"], "203.0.113.7"),
        ("10.0.0.1", ["1.1.1.1, 10.2.2.2", "203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        # Not a proxy of ours: it may write what it likes.
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
        # What is no address ends the search.
        ("10.0.0.1", ["1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, , 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.1", ["' OR 1=1 --"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", ["203.0.113.7"], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        (None, ["203.0.113.7"], None),
    ],
)
def test_the_right_most_address_that_is_no_proxy(peer: str | None, lines: list[str], found: str | None) -> None:
    assert PROXIES.client(peer, lines) == found


def test_without_proxies_nobody_is_believed() -> None:
    assert TrustedProxies([]).client("10.0.0.1", ["203.0.113.7"]) == "10.0.0.1"


def test_a_header_without_end_is_not_read_to_its_end() -> None:
    assert PROXIES.client("10.0.0.1", ["1.1.1.1" + ",10.0.0.2" * 100_000]) == "10.0.0.2"


@given(st.lists(st.text(max_size=40), max_size=5))
def test_whatever_stands_there_the_answer_is_an_address(lines: list[str]) -> None:
    found = PROXIES.client("10.0.0.1", lines)
    assert found is not None
    assert parse_address(found) is not None


@given(st.lists(st.text(alphabet="0123456789.:, abcdef[]", max_size=60), max_size=4))
def test_nothing_on_the_left_changes_who_spoke_to_the_outermost_proxy(lines: list[str]) -> None:
    assert PROXIES.client("10.0.0.1", [*lines, "203.0.113.7"]) == "203.0.113.7"
