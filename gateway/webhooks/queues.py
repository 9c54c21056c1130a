"""Choose the deliveries that are tried now. Pure: times are passed in, as seconds of the monotonic clock.

Each receiver has a queue and a circuit breaker of its own, so that one that is slow or down holds up no other. A
tenant has a maximum of deliveries under way, and one for each host; all tenants together have a maximum, too. Once
half of that is taken, each tenant may have one at a time, so that slow receivers of a few tenants leave room for all.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from itertools import count

from gateway.webhooks.schedule import Breaker

# A delivery's event and endpoint.
Key = tuple[str, str]
# Receivers without deliveries that are remembered for what counts against them.
MAX_IDLE = 1_000
# Queues that one `take` looks at. With more it would hold up everybody, such as after a failure of the network.
MAX_LOOKED = 500
_SLACK = 64
# Deliveries by their time, and among those of one time by the order in which they came.
_Heap = list[tuple[float, int, Key]]


@dataclass(frozen=True, slots=True)
class Recipient:
    """A receiver: a tenant's endpoint (`name` is its id), or the host of prompts' own webhooks."""

    tenant: str
    name: str
    host: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum numbers of deliveries under way."""

    tenant: int
    host: int
    total: int


@dataclass(slots=True, eq=False)
class Queue:
    """The deliveries to one receiver, by the time at which they are due.

    Those in `early` are due at `early_at` at the latest, whatever their time is.
    """

    recipient: Recipient
    breaker: Breaker = field(default_factory=Breaker)
    due: dict[Key, float] = field(default_factory=dict)
    heap: _Heap = field(default_factory=list)
    early: _Heap = field(default_factory=list)
    early_at: float = 0.0
    in_flight: int = 0
    planned_at: float | None = None
    blocked_by: _Limit | None = None

    def put(self, key: Key, at: float, n: int) -> None:
        """Put a delivery in, or move it to another time."""
        self.due[key] = at
        heapq.heappush(self.heap, (at, n, key))
        self.heap = self._cleared(self.heap)

    @property
    def first_at(self) -> float | None:
        """Return the time at which the first delivery is due; None if there is none."""
        first = self._first()
        return None if first is None else first[0]

    def pop(self) -> Key:
        """Take the first delivery out."""
        first = self._first()
        assert first is not None
        key = heapq.heappop(first[1])[2]
        del self.due[key]
        return key

    def hasten(self, now: float) -> None:
        """Make all deliveries due, in their order. This moves none of them, so it is short however many there are."""
        fewer, more = sorted((self.heap, self.early), key=len)
        for each in fewer:
            heapq.heappush(more, each)
        self.heap, self.early, self.early_at = [], self._cleared(more), now

    def _cleared(self, heap: _Heap) -> _Heap:
        """Return a heap, without the deliveries that were moved or removed if those are many."""
        if len(heap) <= 2 * len(self.due) + _SLACK:
            return heap
        kept = [each for each in heap if self.due.get(each[2]) == each[0]]
        heapq.heapify(kept)
        return kept

    def _first(self) -> tuple[float, _Heap] | None:
        """Return the time at which the first delivery is due, and the heap that it is in; None if there is none."""
        for heap in (self.early, self.heap):
            while heap and self.due.get(heap[0][2]) != heap[0][0]:
                heapq.heappop(heap)
        early_at = min(self.early[0][0], self.early_at) if self.early else math.inf
        if self.heap and self.heap[0][0] < early_at:
            return self.heap[0][0], self.heap
        return (early_at, self.early) if self.early else None

    @property
    def is_idle(self) -> bool:
        """Return True if no delivery waits or is under way."""
        return not (self.due or self.in_flight)


# What is full: one tenant, one tenant's host, or all.
_Limit = tuple[str, ...]
_ALL: _Limit = ()


class Queues:
    """The queues of all receivers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[tuple[str, str], Queue] = {}
        self._where: dict[Key, Queue] = {}
        self._under_way: dict[Key, Queue] = {}
        self._counts: Counter[_Limit] = Counter()
        # Queues by the time at which they are looked at, and those that wait for room, the first to wait first.
        self._calendar: list[tuple[float, int, Queue]] = []
        self._blocked: dict[_Limit, OrderedDict[Queue, None]] = {}
        self._freed: dict[_Limit, None] = {}
        self._idle: OrderedDict[Queue, None] = OrderedDict()
        self._n = count()

    def __len__(self) -> int:
        """Return the number of deliveries that wait or are under way."""
        return len(self._where) + len(self._under_way)

    @property
    def in_flight(self) -> int:
        """Return the number of deliveries under way."""
        return len(self._under_way)

    def has(self, key: Key) -> bool:
        """Return True if a delivery waits or is under way."""
        return key in self._where or key in self._under_way

    def is_under_way(self, key: Key) -> bool:
        """Return True from `take` until `ended`."""
        return key in self._under_way

    def put(self, key: Key, recipient: Recipient, at: float) -> None:
        """Put a delivery in, or move it to another time. One that is under way stays so."""
        if key in self._under_way:
            return
        queue = self._queues.get((recipient.tenant, recipient.name))
        if queue is None:
            queue = self._queues[recipient.tenant, recipient.name] = Queue(recipient)
        self._idle.pop(queue, None)
        queue.put(key, at, next(self._n))
        self._where[key] = queue
        self._plan(queue)

    def remove(self, key: Key) -> None:
        """Take a delivery out. One that is under way stays until `ended`."""
        queue = self._where.pop(key, None)
        if queue is not None:
            del queue.due[key]
            self._rest(queue)

    def hasten(self, recipient: Recipient, now: float) -> None:
        """Make all deliveries to a receiver due, because it is back. They keep their order."""
        queue = self._queues.get((recipient.tenant, recipient.name))
        if queue is None:
            return
        queue.hasten(now)
        self._plan(queue)

    def has_waiting(self, recipient: Recipient) -> bool:
        """Return True if a delivery to a receiver waits."""
        queue = self._queues.get((recipient.tenant, recipient.name))
        return queue is not None and bool(queue.due)

    def set_breaker(self, recipient: Recipient, breaker: Breaker) -> None:
        """Give a receiver the circuit breaker that it had in an earlier run. A delivery to it must wait."""
        queue = self._queues[recipient.tenant, recipient.name]
        queue.breaker = breaker
        self._plan(queue)

    def take(self, now: float) -> list[Key]:
        """Return deliveries to try now. They are under way until `ended`. If `next_at` is past, there are more."""
        started: list[Key] = []
        looked = 0
        for limit in list(self._freed):
            waiting = self._blocked.get(limit)
            while waiting and not self._is_full(limit) and looked < MAX_LOOKED:
                looked += 1
                queue, _ = waiting.popitem(last=False)
                queue.blocked_by = None
                self._start(queue, now, started)
            if not waiting:
                self._blocked.pop(limit, None)
            if not waiting or self._is_full(limit):
                del self._freed[limit]
        while self._calendar and self._calendar[0][0] <= now and looked < MAX_LOOKED:
            looked += 1
            at, _, queue = heapq.heappop(self._calendar)
            if queue.planned_at == at:
                queue.planned_at = None
                self._start(queue, now, started)
        return started

    def next_at(self) -> float:
        """Return the time at which `take` may have some; infinity if only an end or a new one can bring some."""
        if self._freed:
            return -math.inf
        while self._calendar and self._calendar[0][2].planned_at != self._calendar[0][0]:
            heapq.heappop(self._calendar)
        return self._calendar[0][0] if self._calendar else math.inf

    def breaker(self, key: Key) -> Breaker:
        """Return the circuit breaker of a delivery that is under way. Call `ended` after a change of it."""
        return self._under_way[key].breaker

    def ended(self, key: Key) -> None:
        """Note that a delivery is no longer under way. To try it again, `put` it in."""
        queue = self._under_way.pop(key)
        queue.in_flight -= 1
        was_scarce = self._is_scarce
        for limit in _limits_of(queue.recipient):
            self._counts[limit] -= 1
            if not self._counts[limit]:
                del self._counts[limit]
            self._freed[limit] = None
        if was_scarce and not self._is_scarce:
            self._freed.update((limit, None) for limit in self._blocked if len(limit) == 1)
        self._plan(queue)
        self._rest(queue)

    def _start(self, queue: Queue, now: float, started: list[Key]) -> None:
        """Start a queue's first delivery, or let the queue wait. Its next one goes after those of other queues."""
        first = queue.first_at
        if first is not None and first <= now and queue.breaker.admits(now, queue.in_flight):
            full = next((limit for limit in _limits_of(queue.recipient) if self._is_full(limit)), None)
            if full is not None:
                queue.blocked_by = full
                self._blocked.setdefault(full, OrderedDict())[queue] = None
                return
            key = queue.pop()
            del self._where[key]
            self._under_way[key] = queue
            queue.in_flight += 1
            self._counts.update(_limits_of(queue.recipient))
            started.append(key)
        self._plan(queue, now)

    def _is_full(self, limit: _Limit) -> bool:
        taken = self._counts[limit]
        if limit == _ALL:
            return taken >= self._limits.total
        if len(limit) > 1:
            return taken >= self._limits.host
        return taken >= (1 if self._is_scarce else self._limits.tenant)

    @property
    def _is_scarce(self) -> bool:
        """Return True if each tenant may have one delivery under way at a time."""
        return 2 * self._counts[_ALL] >= self._limits.total

    def _plan(self, queue: Queue, not_before: float = 0.0) -> None:
        """Note when a queue is to be looked at: not before its breaker allows, and never while it waits for room."""
        first = queue.first_at
        if first is None or queue.blocked_by is not None:
            return
        if queue.breaker.is_open and queue.in_flight:
            # Only one is tried at a time, and its end plans the next.
            queue.planned_at = None
            return
        at = max(first, queue.breaker.until, not_before)
        if queue.planned_at is None or at != queue.planned_at:
            queue.planned_at = at
            heapq.heappush(self._calendar, (at, next(self._n), queue))
            if len(self._calendar) > 2 * len(self._queues) + _SLACK:
                planned = [(each.planned_at, next(self._n), each) for each in self._queues.values()]
                self._calendar = [(at, n, each) for at, n, each in planned if at is not None]
                heapq.heapify(self._calendar)

    def _rest(self, queue: Queue) -> None:
        """Forget a queue without deliveries, unless something counts against its receiver."""
        if not queue.is_idle:
            return
        queue.planned_at = None
        if queue.blocked_by is not None:
            self._blocked[queue.blocked_by].pop(queue, None)
            queue.blocked_by = None
        if not queue.breaker.is_fresh:
            self._idle[queue] = None
            if len(self._idle) <= MAX_IDLE:
                return
            queue, _ = self._idle.popitem(last=False)
        self._queues.pop((queue.recipient.tenant, queue.recipient.name), None)


def _limits_of(recipient: Recipient) -> tuple[_Limit, _Limit, _Limit]:
    return _ALL, (recipient.tenant,), (recipient.tenant, recipient.host)
