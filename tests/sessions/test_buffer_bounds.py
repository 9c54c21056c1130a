"""What waits for all readers together: counted, bounded, given back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.buffer_bounds import LARGE, SLACK, Buffers, Shared, TenantBuffers, Total

PER_TENANT, IN_ALL = 400_000, 900_000


class Reader:
    """A reader that never reads: what it holds, by whether it may be left out."""

    def __init__(self, buffers: Buffers, tenant: str) -> None:
        self.buffers = buffers
        self.counted: TenantBuffers = buffers.join(tenant, self)
        self.lasting: list[bytes] = []
        self.passing: list[bytes] = []
        self.is_closing = False

    @property
    def held(self) -> int:
        """Bytes of all of it."""
        return sum(map(len, self.lasting + self.passing))

    def put(self, message: bytes, *, lasts: bool) -> None:
        """Hold one more."""
        if not self.is_closing:
            (self.lasting if lasts else self.passing).append(message)
            if len(message) >= LARGE:
                self.counted.shared.add(message, len(message))
            self.count()

    def count(self) -> None:
        """Say how much it holds."""
        own = sum(len(each) for each in self.lasting + self.passing if len(each) < LARGE)
        self.buffers.count(self.counted, self, own)

    def thin(self) -> bool:
        """Keep the newest of what passes."""
        before, (gone, self.passing) = self.held, (self.passing[:-1], self.passing[-1:])
        self._drop(gone)
        return self.held <= before // 2

    def give_up(self) -> None:
        """Drop all."""
        self.is_closing = True
        gone, self.lasting, self.passing = self.lasting + self.passing, [], []
        self._drop(gone)

    def _drop(self, gone: list[bytes]) -> None:
        for message in gone:
            if len(message) >= LARGE:
                self.counted.shared.remove(message, len(message))
        self.count()


MESSAGES = [bytes(size) for size in (10, 1_000, 9_000, 20_000, 60_000, 150_000)]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 5), st.booleans()), max_size=200))
def test_no_tenant_and_not_all_together_hold_more_than_their_bounds(steps: list[tuple[int, int, bool]]) -> None:
    buffers = Buffers(PER_TENANT, IN_ALL)
    readers = [Reader(buffers, f"t{n % 4}") for n in range(20)]
    for reader, message, lasts in steps:
        readers[reader].put(MESSAGES[message], lasts=lasts)
        held = {name: set[int]() for name in ("t0", "t1", "t2", "t3")}
        small = dict.fromkeys(held, 0)
        for n, each in enumerate(readers):
            for one in each.lasting + each.passing:
                if len(one) >= LARGE:
                    held[f"t{n % 4}"].add(id(one))
                else:
                    small[f"t{n % 4}"] += len(one)
        sizes = {id(one): len(one) for one in MESSAGES}
        truth = {name: small[name] + sum(sizes[one] for one in large) for name, large in held.items()}
        assert all(size <= PER_TENANT + 5 * SLACK for size in truth.values())
        assert sum(truth.values()) <= IN_ALL + 20 * SLACK
        assert abs(buffers.bytes - sum(truth.values())) <= 20 * SLACK
    for n, each in enumerate(readers):
        each.give_up()
        buffers.leave(f"t{n % 4}", each)
    assert buffers.bytes == 0
    assert "t0" not in buffers


def test_the_one_that_holds_most_makes_room() -> None:
    buffers = Buffers(100_000, 1_000_000)
    little, much = Reader(buffers, "t"), Reader(buffers, "t")
    little.put(bytes(10_000), lasts=True)
    for _ in range(9):
        much.put(bytes(10_000), lasts=True)
    assert not much.is_closing
    much.put(bytes(10_000), lasts=True)
    assert much.is_closing
    assert not little.is_closing


def test_what_may_be_left_out_is_before_a_socket_is_closed() -> None:
    buffers = Buffers(100_000, 1_000_000)
    reader = Reader(buffers, "t")
    for _ in range(50):
        reader.put(bytes(10_000), lasts=False)
    assert not reader.is_closing
    assert reader.held <= 100_000


def test_of_all_tenants_the_one_that_holds_most_makes_room() -> None:
    buffers = Buffers(100_000, 120_000)
    anna, ben = Reader(buffers, "anna"), Reader(buffers, "ben")
    for _ in range(9):
        ben.put(bytes(10_000), lasts=True)
    for _ in range(4):
        anna.put(bytes(10_000), lasts=True)
    assert ben.is_closing
    assert not anna.is_closing


def test_a_large_message_counts_once() -> None:
    total = Total()
    shared, message = Shared(total), bytes(LARGE)
    for _ in range(3):
        shared.add(message, len(message))
    assert shared.bytes == total.bytes == LARGE
    for _ in range(3):
        shared.remove(message, len(message))
    assert shared.bytes == total.bytes == 0
