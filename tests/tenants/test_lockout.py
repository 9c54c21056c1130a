"""The lock-out: who waits, how long, and that nobody else does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.settings import LockoutSettings
from gateway.tenants.lockout import FORGET_SECONDS, Lockout

SETTINGS = LockoutSettings(after=3, first=1, max_time=8)
OFFICE, OTHER = "10.0.0.1", "10.0.0.2"


def guess(lockout: Lockout, count: int, now: float, address: str = OFFICE) -> list[float]:
    """Different wrong keys; the seconds to wait after each."""
    return [lockout.fail(address, f"guess {now} {n}", now) for n in range(count)]


def test_the_wait_grows_up_to_its_bound() -> None:
    lockout, now, waits = Lockout(SETTINGS), 0.0, []
    assert guess(lockout, 2, now) == [0, 0]
    for n in range(6):
        wait = lockout.fail(OFFICE, f"again {n}", now)
        waits.append(wait)
        assert lockout.wait(OFFICE, "right", now) == wait
        assert lockout.wait(OFFICE, "right", now + wait - 0.1) > 0
        now += wait
        assert lockout.wait(OFFICE, "right", now) == 0
    assert waits == [1, 2, 4, 8, 8, 8]
    assert lockout.wait(OTHER, "right", now) == 0


def test_as_long_as_there_is_one_wrong_key_only_that_waits() -> None:
    lockout = Lockout(SETTINGS)
    waits = [lockout.fail(OFFICE, "stale", 0.0) for _ in range(5)]
    assert waits == [0, 0, 1, 2, 4]
    assert lockout.wait(OFFICE, "stale", 0.0) == 4
    assert lockout.wait(OFFICE, "right", 0.0) == 0
    # One other is a guess, and counts with all before.
    assert lockout.fail(OFFICE, "guess", 0.0) == 8
    for key in ("stale", "guess", "right"):
        assert lockout.wait(OFFICE, key, 0.0) == 8


def test_an_address_is_forgotten_when_it_is_quiet() -> None:
    lockout = Lockout(SETTINGS)
    assert guess(lockout, 5, 0.0)[-1] == 4
    assert guess(lockout, 1, 4 + FORGET_SECONDS) == [8]
    assert guess(lockout, 3, 4 + FORGET_SECONDS + 8 + FORGET_SECONDS + 0.1) == [0, 0, 1]


def test_it_can_be_off() -> None:
    lockout = Lockout(LockoutSettings(after=0))
    assert guess(lockout, 100, 0.0) == [0] * 100
    assert len(lockout) == 0


def test_a_crowd_of_addresses_pushes_out_none_that_waits() -> None:
    """Who has an IPv6 /48 has 65,536 of them."""
    lockout = Lockout(SETTINGS, max_addresses=100)
    guess(lockout, 5, 0.0)
    for n in range(1000):
        lockout.fail(f"2001:db8:0:{n:x}::1", "x", 1.0)
    assert len(lockout) <= 100
    assert lockout.wait(OFFICE, "right", 1.0) == 3
    # Nor do many that wait leave no room for those that begin.
    for n in range(1000):
        guess(lockout, 3, 2.0, f"2001:db8:1:{n:x}::1")
    assert len(lockout) <= 100
    assert guess(lockout, 3, 3.0, OTHER) == [0, 0, 1]


def test_an_ipv6_host_is_its_64() -> None:
    lockout = Lockout(SETTINGS)
    for n in range(3):
        lockout.fail(f"2001:db8::{n:x}", f"guess {n}", 0.0)
    assert lockout.wait("2001:db8::ffff", "right", 0.0) == 1
    assert lockout.wait("2001:db8:0:1::1", "right", 0.0) == 0


ADDRESSES = st.integers(0, 5).map(lambda n: f"10.0.0.{n}")
STEPS = st.lists(st.tuples(ADDRESSES, st.integers(0, 3), st.floats(0, 20)), max_size=80)


@given(STEPS, st.integers(1, 4))
def test_who_waits_has_failed_often_enough_and_no_longer_than_is_allowed(
    steps: list[tuple[str, int, float]], max_addresses: int
) -> None:
    lockout, now = Lockout(SETTINGS, max_addresses), 0.0
    failures: dict[str, int] = {}
    for address, key, later in steps:
        now += later
        if lockout.wait(address, str(key), now):
            continue
        failures[address] = failures.get(address, 0) + 1
        wait = lockout.fail(address, str(key), now)
        assert 0 <= wait <= SETTINGS.max_time
        assert wait == 0 or failures[address] >= SETTINGS.after
        assert len(lockout) <= max(max_addresses, 2)
        assert lockout.waiting(now) <= len(lockout)
    for n in range(6):
        if not failures.get(f"10.0.0.{n}"):
            assert lockout.wait(f"10.0.0.{n}", "0", now) == 0


@given(STEPS)
def test_waits_only_grow(steps: list[tuple[str, int, float]]) -> None:
    lockout, now = Lockout(SETTINGS), 0.0
    longest: dict[str, float] = {}
    for address, key, later in steps:
        now += later
        if lockout.wait(address, str(key), now) == 0:
            wait = lockout.fail(address, str(key), now)
            assert wait >= longest.get(address, 0)
            longest[address] = wait
            assert lockout.wait(address, str(key), now) == wait
