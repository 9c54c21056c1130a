"""The deliveries that are tried next: limits, order, breakers, and that none is ever forgotten."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.webhooks.queues import MAX_IDLE, MAX_LOOKED, Key, Limits, Queues, Recipient
from gateway.webhooks.schedule import BREAKER_FAILURES, FIRST_PAUSE, Verdict

LIMITS = Limits(tenant=4, host=2, total=8)


def key(n: int, endpoint: str = "we_1") -> Key:
    """A delivery."""
    return f"evt_{n}", endpoint


def recipient(tenant: str = "t", name: str = "we_1", host: str = "h") -> Recipient:
    """A receiver."""
    return Recipient(tenant, name, host)


def filled(count: int, to: Recipient, queues: Queues | None = None) -> Queues:
    """Queues with deliveries that are due at 0."""
    queues = Queues(LIMITS) if queues is None else queues
    for n in range(count):
        queues.put(key(n, to.tenant + to.name), to, 0.0)
    return queues


def test_a_host_a_tenant_and_all_have_limits() -> None:
    queues = filled(9, recipient())
    assert len(queues.take(0.0)) == LIMITS.host
    assert queues.take(0.0) == []
    queues = Queues(Limits(4, 4, 100))
    for host in "abcd":
        filled(9, recipient(name=host, host=host), queues)
    assert len(queues.take(0.0)) == 4
    queues = Queues(LIMITS)
    for tenant in range(20):
        filled(3, recipient(str(tenant)), queues)
    assert len(queues.take(0.0)) == LIMITS.total


def test_many_queues_are_looked_at_in_turns() -> None:
    """After a failure of the network all may be due at once."""
    queues = Queues(Limits(4, 4, MAX_LOOKED))
    tenants = [str(n) for n in range(2 * MAX_LOOKED + 1)]
    for tenant in tenants:
        filled(1, recipient(tenant), queues)
    first = queues.take(0.0)
    assert len(first) == MAX_LOOKED
    # All others wait for room now, but some were not looked at yet.
    assert queues.next_at() <= 0.0
    assert queues.take(0.0) == queues.take(0.0) == []
    assert queues.next_at() == math.inf
    tried = set(first)
    while first:
        for each in first:
            queues.ended(each)
        first = queues.take(0.0)
        tried |= set(first)
    assert len(tried) == len(tenants)


def test_a_few_tenants_leave_room_for_others() -> None:
    """Once half is taken, each tenant has one at a time."""
    queues = Queues(Limits(4, 4, 8))
    for tenant in "abc":
        filled(9, recipient(tenant), queues)
    assert len(queues.take(0.0)) == queues.in_flight == 4
    for tenant in "def":
        filled(9, recipient(tenant), queues)
    assert len(queues.take(0.0)) == 3


def test_a_tenant_goes_on_once_there_is_room_again_for_more_than_one() -> None:
    queues = filled(2, recipient("b"), Queues(Limits(3, 3, 4)))
    filled(2, recipient("a"), queues)
    assert queues.take(0.0) == [key(0, "bwe_1"), key(0, "awe_1")]
    queues.ended(key(0, "bwe_1"))
    assert queues.take(0.0) == [key(1, "bwe_1")]
    queues.ended(key(1, "bwe_1"))
    assert queues.take(0.0) == [key(1, "awe_1")]


def test_receivers_of_a_tenant_take_turns() -> None:
    queues = Queues(Limits(1, 1, 10))
    for name in "ab":
        filled(3, recipient(name=name, host=name), queues)
    order = []
    while taken := queues.take(0.0):
        (each,) = taken
        order.append(each[1][-1])
        queues.ended(each)
    assert order == list("ababab")


def test_a_breaker_holds_back_its_receiver_alone() -> None:
    queues = filled(9, recipient(name="bad", host="bad"))
    filled(2, recipient(name="good", host="good"), queues)
    for _ in range(BREAKER_FAILURES):
        (bad, *_) = [each for each in queues.take(0.0) if each[1] == "tbad"] or [*queues._under_way]
        queues.breaker(bad).note(Verdict.FAILURE, 0.0, 0.0)
        queues.ended(bad)
    for each in list(queues._under_way):
        queues.ended(each)
    taken = queues.take(1.0)
    assert taken == []
    assert queues.next_at() == FIRST_PAUSE
    (probe,) = queues.take(FIRST_PAUSE)
    assert queues.take(FIRST_PAUSE) == []
    assert queues.next_at() == math.inf
    queues.put(key(99, "later"), recipient(name="bad", host="bad"), 5_000.0)
    queues.breaker(probe).note(Verdict.SUCCESS, FIRST_PAUSE, 0.0)
    queues.ended(probe)
    queues.hasten(recipient(name="bad", host="bad"), FIRST_PAUSE)
    taken = []
    while more := queues.take(FIRST_PAUSE):
        taken += more
        for each in more:
            queues.ended(each)
    assert taken[-1] == key(99, "later")
    assert len(queues) == 0


def test_a_receiver_that_is_back_again_and_again_takes_no_memory() -> None:
    queues = filled(3, recipient())
    for n in range(1_000):
        queues.put(key(0, "twe_1"), recipient(), 1e6 + n)
        queues.hasten(recipient(), 0.0)
    (queue,) = queues._queues.values()
    assert len(queue.early) + len(queue.heap) < 100
    assert queues.take(0.0) == [key(1, "twe_1"), key(2, "twe_1")]


def test_forgotten_receivers_and_old_plans_take_no_memory() -> None:
    queues = Queues(LIMITS)
    for n in range(MAX_IDLE + 50):
        to = recipient(name=str(n), host=str(n))
        queues.put(key(n), to, 0.0)
        queues.take(0.0)
        queues.breaker(key(n)).note(Verdict.FAILURE, 0.0, 0.0)
        queues.ended(key(n))
    assert len(queues._queues) == len(queues._idle) == MAX_IDLE
    queues = Queues(LIMITS)
    queues.put(key(0), recipient(), 1e6)
    for n in range(1, 3_000):
        queues.put(key(n), recipient(), float(n))
        assert queues.take(float(n)) == [key(n)]
        queues.ended(key(n))
    assert len(queues._calendar) < 300
    for n in range(3_000):
        queues.put(key(0), recipient(), 1e6 + n)
    (queue,) = queues._queues.values()
    assert len(queue.heap) < 300


WAITS = st.integers(0, 9)
TIGHT = Limits(tenant=3, host=2, total=5)


class QueuesMachine(RuleBasedStateMachine):
    """Random lives of deliveries: no limit is passed, and whatever is due and may go, goes."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = Queues(TIGHT)
        self.now = 0.0
        self.n = 0
        self.due: dict[Key, tuple[Recipient, float]] = {}
        self.flying: dict[Key, Recipient] = {}

    @rule(
        tenant=st.sampled_from("abcdef"), name=st.sampled_from("xy"), host=st.sampled_from("hk"), wait=st.integers(0, 9)
    )
    def put(self, tenant: str, name: str, host: str, wait: int) -> None:
        """A delivery comes."""
        self.n += 1
        to = recipient(tenant, name, "shared" if host == "h" else name)
        to = next((r for r, _ in self.due.values() if (r.tenant, r.name) == (tenant, name)), to)
        to = next((r for r in self.flying.values() if (r.tenant, r.name) == (tenant, name)), to)
        queue = self.queues._queues.get((tenant, name))
        to = queue.recipient if queue is not None else to
        self.queues.put(key(self.n), to, self.now + wait)
        self.due[key(self.n)] = to, self.now + wait

    @rule()
    def take(self) -> None:
        """The loop looks."""
        for each in self.queues.take(self.now):
            to, at = self.due.pop(each)
            assert at <= self.now
            self.flying[each] = to
        assert self.queues.next_at() > self.now
        for to, at in self.due.values():
            if at <= self.now:
                assert self.is_held(to), (to, self.flying)

    def is_held(self, to: Recipient) -> bool:
        """Whether a limit or a breaker holds a receiver's deliveries back."""
        tenants, hosts = Counter(r.tenant for r in self.flying.values()), Counter(self.flying.values())
        host = sum(n for r, n in hosts.items() if (r.tenant, r.host) == (to.tenant, to.host))
        most = 1 if 2 * len(self.flying) >= TIGHT.total else TIGHT.tenant
        is_full = len(self.flying) >= TIGHT.total or tenants[to.tenant] >= most or host >= TIGHT.host
        queue = self.queues._queues[to.tenant, to.name]
        return is_full or not queue.breaker.admits(self.now, queue.in_flight)

    @rule(index=st.integers(0, 99), verdict=st.sampled_from([*Verdict]), again=st.booleans())
    def end(self, index: int, verdict: Verdict, again: bool) -> None:
        """An attempt ends."""
        if not self.flying:
            return
        each = list(self.flying)[index % len(self.flying)]
        self.queues.breaker(each).note(verdict, self.now, 0.5, 3.0)
        self.queues.ended(each)
        to = self.flying.pop(each)
        if again:
            self.queues.put(each, to, self.now + 5)
            self.due[each] = to, self.now + 5

    @rule(index=st.integers(0, 99))
    def remove(self, index: int) -> None:
        """A delivery is dropped."""
        if self.due:
            each = list(self.due)[index % len(self.due)]
            self.queues.remove(each)
            del self.due[each]

    @rule(index=st.integers(0, 99))
    def hasten(self, index: int) -> None:
        """A receiver is back."""
        if self.due:
            to, _ = self.due[list(self.due)[index % len(self.due)]]
            self.queues.hasten(to, self.now)
            self.due = {each: (r, min(at, self.now) if r == to else at) for each, (r, at) in self.due.items()}

    @rule(seconds=st.sampled_from([1, 3, 40, 700]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now += seconds

    @invariant()
    def counts_are_right(self) -> None:
        """Nothing is lost, and no limit is passed."""
        assert len(self.queues) == len(self.due) + len(self.flying)
        assert self.queues.in_flight == len(self.flying) <= TIGHT.total
        assert all(n <= TIGHT.tenant for n in Counter(r.tenant for r in self.flying.values()).values())


TestQueues = QueuesMachine.TestCase
TestQueues.settings = settings(max_examples=30, stateful_step_count=60)
